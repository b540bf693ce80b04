"""One service of a host: one process, one plugin, one job at a time.

Plugins import from here only. This package never imports `anklet_supervisor`.
"""

__version__ = "0.1.0"
