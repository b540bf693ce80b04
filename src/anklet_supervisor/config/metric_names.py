"""The names of the core's metric families that begin with `anklet_`. A plugin's figure must not take one of them.

`report.exposition` makes the families; the configuration's check must know their names without importing it.
"""

from __future__ import annotations

FAMILIES = frozenset(
    {
        "anklet_api_calls_left",
        "anklet_api_calls_limit",
        "anklet_api_limit_resets_at_timestamp_seconds",
        "anklet_api_request_seconds",
        "anklet_api_requests",
        "anklet_build_info",
        "anklet_foreign_vms",
        "anklet_host_degraded",
        "anklet_job_in_hand_timestamp_seconds",
        "anklet_job_retries",
        "anklet_job_stage_seconds",
        "anklet_jobs",
        "anklet_jobs_given_back",
        "anklet_leases_lost",
        "anklet_log_lines_dropped",
        "anklet_orphans_reaped",
        "anklet_queue_jobs",
        "anklet_queue_oldest_timestamp_seconds",
        "anklet_service_state",
        "anklet_services",
        "anklet_slots",
        "anklet_vm_command_seconds",
        "anklet_worker_restarts",
    }
)
