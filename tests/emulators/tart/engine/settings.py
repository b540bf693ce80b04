"""Every switch of the emulated host and its default. The README's table explains them; a test compares the two.

Owns the names and defaults. Knows nothing of commands.
"""

from __future__ import annotations

GIB = 1024**3

DEFAULTS = {
    "version": "2.32.1",
    # the limit of running VMs
    "leak_slot": 0,
    "leak_on": "guest",
    "slot_lag": 0,
    "limit_always": False,
    # conditions that `tart run` meets
    "keychain_locked": False,
    "keychain_message": "SecKeyCreateRandomKey_ios failed: Interaction is not allowed with the Security Server",
    "request_stop": "dialog",
    "stop_hangs": False,
    # the network
    "ip_after_polls": 0,
    "ip_pause": 1,
    "stale_lease": False,
    "lease_seconds": 86400,
    # the guest agent
    "guest_agent": True,
    "boot_execs": 0,
    "agent_error": "The operation couldn't be completed. (GRPC.GRPCConnectionPoolError error 1.)",
    "agent_silence": 0,
    "exec_lost_message": "unavailable (14): Transport became inactive",
    "exec_output": "closed",
    "exec_waits_for": "exit",
    "exec_tail_lost": 0,
    "killed_exec_guest": "killed",
    # ssh into guests
    "sshd": True,
    "boot_sshs": 0,
    "ssh_user": "admin",
    "ssh_password": "admin",
    "ssh_silence": 1,
    "ssh_lost": "closed",
    # registry and disk
    "registry": "up",
    "registry_user": None,
    "registry_down_message": "The Internet connection appears to be offline.",
    "interrupted_pull": "clean",
    "disk_available": 500 * GIB,
    # the guest
    "stop_grace": 0.5,
    "guest_path": "/bin:/usr/bin:/usr/sbin:/usr/local/bin:/opt/homebrew/bin",
    "ssh_path": "/usr/bin:/bin:/usr/sbin:/sbin",
    "guest_env": {},
    "stderr_noise": "",
    # seconds per command, spent in the middle of its effect; "*" covers all commands that are not named
    "delays": {},
}

#: Switches with a closed set of values.
CHOICES = {
    "leak_on": ("guest", "any"),
    "request_stop": ("dialog", "stops"),
    "exec_output": ("closed", "drained"),
    "exec_waits_for": ("exit", "eof"),
    "killed_exec_guest": ("killed", "lives"),
    "ssh_lost": ("closed", "hangs"),
    "registry": ("up", "down", "auth"),
    "interrupted_pull": ("clean", "corrupt"),
}
