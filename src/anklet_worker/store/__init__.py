"""Leases and what services tell each other: embedded, or in Redis."""
