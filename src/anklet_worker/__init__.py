"""The worker: one process per service, with one plugin and one job at a time.

Plugins import only from `anklet_worker.contract`. This package never imports `anklet_supervisor`.
"""

__version__ = "0.1.0"
