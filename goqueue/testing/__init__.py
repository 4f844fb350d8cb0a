"""Servers and databases to try goqueue on."""
