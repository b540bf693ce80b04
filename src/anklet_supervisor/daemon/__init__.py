"""The running supervisor: it starts, turns, acts and owns its processes."""
