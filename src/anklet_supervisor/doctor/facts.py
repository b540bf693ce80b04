"""Gathers the facts that `doctor` judges: asks the VM tools, the network, the disk and macOS. Changes nothing.

Owns how to get each fact; one that fails does not hide the others. Must not know what a fact means: that is `doctor.doctor`.
"""

from __future__ import annotations

import contextlib
import os
import plistlib
import re
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import psutil

from anklet_supervisor.config.load import ConfigErrors, Problem, SupervisorConfig, default_state_dir, load, load_host
from anklet_supervisor.daemon.host import known_install_id, running_supervisor
from anklet_supervisor.doctor.doctor import DriverFacts, Facts, ImageWanted, MacFacts, PathFacts, Reached, VMSeen
from anklet_supervisor.launchd import agent
from anklet_worker.contract.errors import AnkletError
from anklet_worker.contract.findings import DOCTOR_GROUP, Finding, PluginDoctor, Verdict
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.log.service_log import open_log
from anklet_worker.process.command import CommandResult, CommandRunner, CommandSettings
from anklet_worker.process.orders import Orders
from anklet_worker.store.redis_store import RedisStore
from anklet_worker.vm.driver import VMState
from anklet_worker.vm.drivers import open_driver
from anklet_worker.vm.foreign import virtualization_processes

T = TypeVar("T")

#: Seconds: to connect to a registry, and for a command of macOS to answer.
_CONNECT = 5.0
_ANSWER = 10.0
_PREFERENCES = Path("/Library/Preferences")
_INTERNET_SHARING = _PREFERENCES / "SystemConfiguration" / "com.apple.InternetSharing.default.plist"
_LOGIN_WINDOW = _PREFERENCES / "com.apple.loginwindow.plist"
_CONSOLE = Path("/dev/console")
_POWER_LINE = re.compile(r"\s+(\S+)\s+(\S+)")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def gather(config_path: Path, home: Path) -> Facts:
    """Gather every fact. Takes some seconds; a fact that fails is left out, never raised."""
    config, problems = _configuration(config_path, home)
    facts = Facts(
        config=str(config_path),
        missing=not config_path.exists(),
        problems=problems,
        disk=_disk(default_state_dir(os.environ, home=home, platform=sys.platform)),
        root=os.geteuid() == 0,
        agent_label=agent.LABEL,
        mac=mac_facts() if sys.platform == "darwin" else None,
    )
    if config is None:
        return facts
    services = config.services
    return msgspec.structs.replace(
        facts,
        services=len(services),
        supervisor=_or_none(lambda: running_supervisor(config.state_dir)),
        install_id=_or_none(lambda: known_install_id(config.state_dir)),
        drivers=tuple(_drivers(config)),
        registries=tuple(_registries(services)),
        stores=tuple(_stores(services)),
        origins=tuple(_origins(services)),
        disk=_disk(config.state_dir),
        port=_port(config),
        paths=tuple(_paths(config_path, config)),
        agent_current=agent_is_current(config_path, config, home),
    )


def _configuration(path: Path, home: Path) -> tuple[SupervisorConfig | None, tuple[Problem, ...]]:
    """The configuration and its problems. Without the services when these are wrong; None when the rest is, too."""
    try:
        return load(path, os.environ, home=home, platform=sys.platform)
    except ConfigErrors as error:
        try:
            return load_host(path, os.environ, home=home, platform=sys.platform), error.problems
        except ConfigErrors:
            return None, error.problems


# ---- VM tools ----


def commands() -> CommandRunner:
    """Runs commands with this process's environment, and records none of them."""
    settings = CommandSettings(
        env=os.environ, secrets=(), cwd=Path("/"), in_flight=lambda _: None, ended=lambda *_: None
    )
    return CommandRunner(Orders(), settings)


def _drivers(config: SupervisorConfig) -> Iterator[DriverFacts]:
    for name in dict.fromkeys(service.vm_driver for service in config.services):
        users = [service for service in config.services if service.vm_driver == name]
        yield _driver(users)


def _driver(users: Sequence[ServiceConfig]) -> DriverFacts:
    facts = DriverFacts(name=users[0].vm_driver, services=tuple(user.name for user in users))
    log = open_log(lambda _: None, "ERROR", (), {}, name="anklet.doctor")
    # A scratch directory: we touch nothing of a running supervisor and wait for none of its locks.
    with tempfile.TemporaryDirectory(prefix="anklet-doctor-") as scratch:
        try:
            driver = open_driver(users[0], Path(scratch), commands(), Orders(), log)
            product = driver.probe()
        except AnkletError as error:
            return msgspec.structs.replace(facts, error=str(error))
        facts = msgspec.structs.replace(facts, product=f"{product.product} {product.version}")
        try:
            listing = driver.listing()
        except AnkletError as error:
            return msgspec.structs.replace(facts, error=f"cannot list VMs: {error}")
    seen = tuple(VMSeen(name=vm.name, running=vm.state is VMState.RUNNING) for vm in listing)
    return msgspec.structs.replace(facts, vms=seen, images=tuple(_images(users, {vm.name for vm in listing})))


def _images(users: Sequence[ServiceConfig], here: set[str]) -> Iterator[ImageWanted]:
    """The images that services name in the configuration; only services with Tart can."""
    with_image = [user for user in users if user.vm_driver == "tart" and user.tart.image]
    for name in dict.fromkeys(user.tart.image for user in with_image):
        asking = [user for user in with_image if user.tart.image == name]
        yield ImageWanted(
            name=str(name),
            services=tuple(user.name for user in asking),
            here=bool(here & {name, f"{name}:latest"}),
            can_be_pulled="/" in str(name) and all(user.tart.pull != "never" for user in asking),
        )


# ---- the network ----


def _registries(services: Sequence[ServiceConfig]) -> Iterator[Reached]:
    for url in dict.fromkeys(service.registry_url for service in services if service.registry_url):
        users = tuple(service.name for service in services if service.registry_url == url)
        yield Reached(what=_without_user(url), services=users, error=_connect(url))


def _without_user(url: str) -> str:
    """The URL without user and password, for messages."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _connect(url: str) -> str:
    """Why a connection there fails; empty when it succeeds."""
    parts = urlsplit(url)
    try:
        address = (parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme, 80))
        with socket.create_connection(address, timeout=_CONNECT):
            return ""
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _stores(services: Sequence[ServiceConfig]) -> Iterator[Reached]:
    databases = dict.fromkeys(service.database for service in services if service.database.enabled)
    for database in databases:
        users = tuple(service.name for service in services if service.database == database)
        what = f"Redis at {database.host}:{database.port}"
        try:
            store = RedisStore(database, "anklet-doctor")
        except AnkletError as error:
            yield Reached(what=what, services=users, error=str(error))
        else:
            store.close()
            yield Reached(what=f"{what} (version {store.version})", services=users)


def _origins(services: Sequence[ServiceConfig]) -> Iterator[Finding]:
    """The findings of the plugins' own doctors. Services that differ only in their name are examined once; the same finding about
    several services appears once, with all their names."""
    alike: list[tuple[ServiceConfig, list[str]]] = []
    for service in services:
        bare = msgspec.structs.replace(service, name="")
        names = next((names for known, names in alike if known == bare), None)
        if names is None:
            alike.append((bare, [service.name]))
        else:
            names.append(service.name)
    said: dict[Finding, list[str]] = {}
    for bare, names in alike:
        for finding in _examined(msgspec.structs.replace(bare, name=names[0])):
            said.setdefault(msgspec.structs.replace(finding, service=""), []).extend(names)
    for finding, names in said.items():
        yield msgspec.structs.replace(finding, service=", ".join(names))


def _examined(service: ServiceConfig) -> list[Finding]:
    from importlib.metadata import entry_points  # noqa: PLC0415  `agent` uses this module without plugins

    for point in entry_points(group=DOCTOR_GROUP, name=service.plugin):
        try:
            examine: PluginDoctor = point.load()
            return list(examine(service))
        except Exception as error:  # noqa: BLE001  a plugin's code may raise anything; that becomes a finding
            said = f"the doctor of plugin {service.plugin} failed: {type(error).__name__}"
            return [
                Finding(check="plugin", verdict=Verdict.WARNING, said=said, remedy="report it to the plugin's author")
            ]
    said = f"not checked: plugin {service.plugin} has no doctor"
    return [Finding(check="plugin", verdict=Verdict.NOT_CHECKED, said=said)]


def _port(config: SupervisorConfig) -> Reached:
    host, port = config.metrics.host, config.metrics.port
    what = f"{host}:{port}"
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            # As the endpoint does: connections in TIME_WAIT do not block the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return Reached(what=what, services=(), error=error.strerror or str(error))
    return Reached(what=what, services=())


# ---- files ----


def _disk(state_dir: Path) -> tuple[int, str] | None:
    place = next((path for path in (state_dir, *state_dir.parents) if path.is_dir()), Path("/"))
    free = _or_none(lambda: psutil.disk_usage(str(place)).free)
    return None if free is None else (free, str(place))


def _paths(config_path: Path, config: SupervisorConfig) -> Iterator[PathFacts]:
    yield _path(config_path, "the configuration", secret=False)
    yield _path(config.state_dir, "state_dir")
    yield _path(config.plugins_path, "plugins_path", secret=False)
    if config.log.file_dir is not None:
        yield _path(config.log.file_dir, "log.file_dir", secret=False)


def _path(path: Path, what: str, *, secret: bool = True) -> PathFacts:
    try:
        info = path.stat()
    except OSError:
        return PathFacts(path=path, what=what, mode=None)
    # With the sticky bit, as on /tmp, others may write but cannot replace our files.
    mode = info.st_mode & ~(stat.S_IWGRP | stat.S_IWOTH) if info.st_mode & stat.S_ISVTX else info.st_mode
    return PathFacts(path=path, what=what, mode=mode, ours=info.st_uid in (os.geteuid(), 0), secret=secret)


# ---- a Mac ----


def mac_facts() -> MacFacts:
    """Ask macOS about power, login, keychain, DHCP and the agent."""
    power = _ask("pmset", "-g", "custom")
    keychain = _ask("security", "show-keychain-info")
    loaded = _ask("launchctl", "print", agent.target(os.getuid()))
    return MacFacts(
        power=None if power is None or power.status else power_on_mains(power.stdout.decode(errors="replace")),
        console_ours=_or_none(lambda: _CONSOLE.stat().st_uid == os.getuid()),
        auto_login=_or_none(lambda: _plist(_LOGIN_WINDOW).get("autoLoginUser")),
        keychain_unlocked=None if keychain is None or keychain.timed_out else keychain.status == 0,
        dhcp_lease=_or_none(lambda: int(_plist(_INTERNET_SHARING)["bootpd"]["DHCPLeaseTimeSecs"])),
        agent_loaded=None if loaded is None else loaded.status == 0,
        virtualization_processes=virtualization_processes(),
    )


def agent_is_current(config_path: Path, config: SupervisorConfig, home: Path) -> bool:
    """True when the agent's file is what `agent install` would write now."""
    path = agent.list_path(home)
    return _or_none(path.read_bytes) == agent.property_list(agent.installation(config_path, config, home))


def power_on_mains(text: str) -> dict[str, str]:
    """The settings that `pmset -g custom` prints for AC power; a Mac without a battery has no others."""
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            current = sections.setdefault(line[:-1], {})
        elif match := _POWER_LINE.match(line):
            current[match[1]] = match[2]
    return sections.get("AC Power", current)


def _plist(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = plistlib.loads(path.read_bytes())
    return value


def _ask(*argv: str) -> CommandResult | None:
    with contextlib.suppress(AnkletError):
        return commands().run(argv, timeout=_ANSWER)
    return None


def _or_none(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (OSError, AnkletError, LookupError, ValueError, plistlib.InvalidFileException, psutil.Error):
        return None
