"""Keys of the original's later configurations (its versions up to 2.0) that the core has under another name, or not at all.

`check` says what to write instead, at the key's place; docs/migration.md has the whole table. A plugin's rules hold the keys that
only it replaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from anklet_worker.contract.settings import Moved

_EACH = "each service has its own (an anchor and `<<` save writing it twice)"
_RECEIVER = "remove it: there is no receiver, since this program asks GitHub itself"
_RESOURCES = "remove it: VMs are counted (`vm_limit`), not their processors and memory"
_MOUNTS = "remove it: VMs get no folders of the host"
_DISK = "remove it: `doctor` and the alert AnkletDiskFilling tell when the disk fills; no template is deleted by itself"
_RETRIES = "remove it: how often Redis is tried again is not configured"
_CLUSTER = "remove it: name one Redis server; clusters are not supported"
_TLS_INSECURE = "remove it: the server's certificate is always verified; let the system trust its CA"
_AGGREGATOR = "remove it: Prometheus scrapes each host itself"

HOST: Mapping[str, Moved] = {
    "plugins": Moved("services"),
    "global_token": Moved("services[].token", _EACH),
    "global_private_key": Moved("services[].private_key", _EACH),
    "global_receiver_secret": Moved("", _RECEIVER),
    "global_database_url": Moved("services[].database.url", f"with database.enabled: true; {_EACH}"),
    "global_database_port": Moved("services[].database.port", _EACH),
    "global_database_user": Moved("services[].database.user", _EACH),
    "global_database_password": Moved("services[].database.password", _EACH),
    "global_database_database": Moved("services[].database.database", _EACH),
    "global_database_cluster_mode": Moved("", _CLUSTER),
    "global_database_tls_enabled": Moved("services[].database.url", "TLS is rediss://HOST:PORT"),
    "global_database_tls_insecure": Moved("", _TLS_INSECURE),
    "global_database_max_retries": Moved("", _RETRIES),
    "global_database_retry_delay": Moved("", _RETRIES),
    "global_database_retry_backoff_factor": Moved("", _RETRIES),
    "global_skip_cpu_and_memory_resource_checks": Moved("", _RESOURCES),
    "global_host_to_guest_folder_mounts": Moved("", _MOUNTS),
    "global_template_disk_buffer": Moved("", _DISK),
}
LOG: Mapping[str, Moved] = {
    "split_by_plugin": Moved(
        "", "remove it: there is one file, and `anklet-supervisor logs --service NAME` shows one service's lines"
    ),
}
METRICS: Mapping[str, Moved] = {
    "aggregator": Moved("", _AGGREGATOR),
    "metrics_urls": Moved("", _AGGREGATOR),
    "sleep_interval": Moved("", _AGGREGATOR),
    "database": Moved("", _AGGREGATOR),
}
SERVICE: Mapping[str, Moved] = {
    "queue_name": Moved("", "remove it: hosts that share a Redis (database) share the jobs of a repository by that"),
    "registration_timeout_seconds": Moved("deadlines.runner_online"),
    "skip_pull": Moved("tart.pull", "for Anka remove it: what is on the host is never pulled again"),
    "template_disk_buffer": Moved("", _DISK),
    "skip_cpu_and_memory_resource_checks": Moved("", _RESOURCES),
    "host_to_guest_folder_mounts": Moved("", _MOUNTS),
}
DATABASE: Mapping[str, Moved] = {
    "cluster_mode": Moved("", _CLUSTER),
    "tls_enabled": Moved("database.url", "TLS is rediss://HOST:PORT"),
    "tls_insecure": Moved("", _TLS_INSECURE),
    "max_retries": Moved("", _RETRIES),
    "retry_delay": Moved("", _RETRIES),
    "retry_backoff_factor": Moved("", _RETRIES),
}


def markdown(plugin: Mapping[str, Moved]) -> str:
    """The table for docs/migration.md. `plugin`: the keys that a plugin replaces."""
    return "| key there | key here | what to do |\n|---|---|---|\n" + "".join(_rows(plugin))


def _rows(plugin: Mapping[str, Moved]) -> Iterator[str]:
    sections = (
        ("", HOST),
        ("log.", LOG),
        ("metrics.", METRICS),
        ("plugins[].", SERVICE),
        ("plugins[].", plugin),
        ("plugins[].database.", DATABASE),
    )
    for prefix, section in sections:
        for name, moved in section.items():
            to = f"`{moved.to}`" if moved.to else "none"
            yield f"| `{prefix}{name}` | {to} | {moved.advice or 'rename it'} |\n"
