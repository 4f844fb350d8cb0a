"""The PostgreSQL backend: all code that uses a connection."""
