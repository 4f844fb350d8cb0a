"""The benchmarks of `make bench`. They import goqueue, psycopg, psutil and rich; nothing but their test imports them."""
