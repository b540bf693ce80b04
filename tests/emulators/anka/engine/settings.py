"""Every switch of the emulated host and its default. The README's table explains them; a test compares the two.

Owns the names and defaults. Knows nothing of commands.
"""

from __future__ import annotations

GIB = 1024**3

DEFAULTS = {
    # identity
    "version": "3.9.1",
    "build": "216",
    "product": "Anka Build Basic",
    "license_status": "valid",
    "license_type": "com.veertu.anka.entplus",
    "license_expires": "31-dec-2099",
    "eula_accepted": True,
    # the limit of running VMs
    "leak_slot": 0,
    "limit_always": False,
    "limit_code": 1,
    # exit statuses
    "error_exit": 1,
    "usage_exit": 64,
    "declined_exit": 1,
    # unpublished texts and codes
    "name_exists_message": "{id}: already exists",
    "running_message": "{id}: VM is running",
    "running_code": 1,
    "not_running_message": "{id}: VM is not running",
    "not_running_code": 1,
    "no_space_message": "{id}: No space left on device",
    "no_space_code": 28,
    "registry_down_message": "request failed with result 7: Couldn't connect to server",
    "registry_down_code": 7,
    "tag_missing_message": "{id}: not found",
    "failed_message": "{id}: failed to start: No child processes",
    "failed_code": 10,
    # shapes of replies
    "empty_list": "[]",
    "clone_body": "empty",
    "start_body": "show",
    "ip_absent": "missing",
    "ip_after_polls": 0,
    "stderr_noise": "",
    # behaviours
    "start_running": "ok",
    "stop_stopped": "ok",
    "allow_nonunique_names": False,
    "cp_stopped": "refuse",
    "boot_runs": 0,
    "run_json": "raw",
    "run_waits_for": "exit",
    "killed_run_guest": "lives",
    "killed_clone": "nothing",
    "killed_start": "running",
    "interrupted_pull": "clean",
    "stop_grace": 0.5,
    # registry and disk
    "registry_down": False,
    "registry_url": None,
    "pull_failback": False,
    "pull_progress_lines": 3,
    "pull_newline": True,
    "disk_available": 500 * GIB,
    # the guest
    "guest_path": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "guest_env": {},
    # seconds per command, spent in the middle of its effect; "*" covers all commands that are not named
    "delays": {},
}

#: Switches with a closed set of values.
CHOICES = {
    "empty_list": ("[]", "null", "missing", "nothing"),
    "clone_body": ("empty", "uuid"),
    "start_body": ("show", "empty"),
    "ip_absent": ("missing", "empty"),
    "start_running": ("ok", "error"),
    "stop_stopped": ("ok", "error"),
    "cp_stopped": ("refuse", "start", "offline"),
    "run_json": ("raw", "append", "wrap"),
    "run_waits_for": ("exit", "eof"),
    "killed_run_guest": ("lives", "killed"),
    "killed_clone": ("nothing", "half", "whole"),
    "killed_start": ("running", "failed", "stopped"),
    "interrupted_pull": ("clean", "half", "blocked"),
}
