"""Life cycles: the tables of a VM and of an attempt, the records that announce them on disk, and the VM that owns its life.

Knows no job system and no plugin: an attempt at a job borrows a VM, and a VM may be without one.
"""
