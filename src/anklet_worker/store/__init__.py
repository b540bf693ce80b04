"""Leases, counters and notes that services share: embedded, in Redis, or in memory."""
