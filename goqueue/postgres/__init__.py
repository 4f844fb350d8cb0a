"""PostgreSQL: everything that touches a connection."""
