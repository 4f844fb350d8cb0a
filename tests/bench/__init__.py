"""The benchmarks of `make bench`. They import goqueue, psycopg, psutil and rich; only their own test imports them."""
