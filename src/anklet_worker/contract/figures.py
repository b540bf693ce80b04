"""Figures that a plugin may report beside facts about jobs."""

from __future__ import annotations

from enum import Enum


class Figure(Enum):
    """What a plugin may report beside facts about jobs. The values are the endings of metrics' names."""

    #: Calls of the API that the credentials have left until the limit is reset, how many they have in all, and Unix time of that.
    API_CALLS_LEFT = "api_calls_left"
    API_CALLS_LIMIT = "api_calls_limit"
    API_LIMIT_RESETS_AT = "api_limit_resets_at_timestamp_seconds"
    #: Queued jobs that have waited for long and that nobody has claimed.
    STALE_JOBS = "stale_jobs"
    #: Runners (or the like) of this host that are registered, offline, and without a VM.
    LEFT_RUNNERS = "left_runners"
    #: How many of these were removed just now; summed up.
    SWEPT_RUNNERS = "swept_runners"
