"""Servers and databases for trying goqueue."""
