"""The fault injection that `make chaos` runs. An oracle judges what the clients were told against what happened.

The modules import goqueue, msgspec, psutil, psycopg and rich; only tests/test_chaos.py imports them.
"""
