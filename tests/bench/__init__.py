"""The benchmarks that `make bench` runs. They import goqueue, psycopg, psutil and rich; only tests/test_bench.py
imports them."""
