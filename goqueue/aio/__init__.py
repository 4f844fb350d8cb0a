"""The asynchronous half, which is the source: `make catalogue` makes the synchronous modules of the same names from
these, one folder up. Change these."""
