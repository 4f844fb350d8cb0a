"""Workers: they claim jobs through the storage contract, call the handlers of their types, and report the outcomes."""
