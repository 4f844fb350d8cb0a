"""Workers, which claim jobs through the storage contract, call their handlers and report the outcomes."""
