"""The figures that the github plugin reports; its rules declare them."""

from __future__ import annotations

from anklet_worker.contract.figures import Figure, FigureKind

STALE_JOBS = Figure("stale_jobs", "Jobs that have waited a long time and that no host has claimed, as last seen.")
LEFT_RUNNERS = Figure(
    "left_runners", "Runners of this host that are registered, offline and without a VM, as last seen."
)
SWEPT_RUNNERS = Figure("swept_runners", "Registered runners without a VM that were removed.", FigureKind.COUNTER)

FIGURES = (STALE_JOBS, LEFT_RUNNERS, SWEPT_RUNNERS)
