"""Judges whether this host can run jobs: gathered facts become findings, each with its remedy. Pure.

Owns what counts as fit. `doctor.facts` gathers the facts. Must not know any plugin or driver by name: plugins hand in findings,
drivers hand in errors.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from anklet_supervisor.config.load import Problem, Severity
from anklet_worker.contract.findings import Finding, Verdict
from anklet_worker.contract.guest import NAME_PREFIX
from anklet_worker.vm.names import parse_vm_name

_GIB = 1 << 30
#: Bytes free: below the first the next pull or a growing clone may fill the disk, below the second a clone may fail.
_SOME_DISK, _NO_DISK = 50 * _GIB, 5 * _GIB
#: Seconds. Each VM holds an address of a /24 network for its lease, by default a day (field reports: about 250 VMs a day).
_LONGEST_DHCP_LEASE = 3600
_OTHERS_MAY_READ = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class VMSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a driver's listing."""

    name: str
    running: bool


class ImageWanted(msgspec.Struct, frozen=True, kw_only=True):
    """An image that the configuration names for these services. `here`: it is on this host."""

    name: str
    services: tuple[str, ...]
    here: bool
    can_be_pulled: bool


class DriverFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A VM driver's answers. `error`: why it cannot be used; `vms` is None when it could not list them."""

    name: str
    services: tuple[str, ...]
    product: str = ""
    error: str = ""
    vms: tuple[VMSeen, ...] | None = None
    images: tuple[ImageWanted, ...] = ()


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """Something on the network and the services that need it. `error`: why it did not answer; empty when it did."""

    what: str
    services: tuple[str, ...]
    error: str = ""


class PathFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A file or directory that we use. `mode` is None when it does not exist; `secret`: other users must not read it."""

    path: Path
    what: str
    mode: int | None
    ours: bool = True
    secret: bool = True


class MacFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that only macOS has; None where it gave no answer.

    `power`: pmset's settings on AC power; `dhcp_lease`: seconds; `console_ours`: this user owns the desktop session.
    """

    power: dict[str, str] | None = None
    console_ours: bool | None = None
    auto_login: str | None = None
    keychain_unlocked: bool | None = None
    dhcp_lease: int | None = None
    agent_loaded: bool | None = None
    virtualization_processes: int = 0


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was gathered.

    `missing`: the configuration file does not exist. `supervisor`: the pid of the running one. `disk`: free bytes, and the path
    they were measured at. `mac` is None on other systems. `agent_current`: the agent's file is what `agent install` would write.
    """

    config: str
    missing: bool = False
    problems: tuple[Problem, ...] = ()
    services: int = 0
    supervisor: int | None = None
    root: bool = False
    install_id: str | None = None
    drivers: tuple[DriverFacts, ...] = ()
    registries: tuple[Reached, ...] = ()
    stores: tuple[Reached, ...] = ()
    origins: tuple[Finding, ...] = ()
    disk: tuple[int, str] | None = None
    port: Reached | None = None
    paths: tuple[PathFacts, ...] = ()
    mac: MacFacts | None = None
    agent_label: str = ""
    agent_current: bool = True


def judge(facts: Facts) -> list[Finding]:
    """Every finding, in the order in which an operator should fix them."""
    return [finding for check in _CHECKS for finding in check(facts)]


def fit(findings: Iterable[Finding]) -> bool:
    """True when no finding is a problem."""
    return all(finding.verdict is not Verdict.PROBLEM for finding in findings)


def _ok(check: str, said: str, service: str = "") -> Finding:
    return Finding(check=check, verdict=Verdict.OK, said=said, service=service)


def _warning(check: str, said: str, remedy: str, service: str = "") -> Finding:
    return Finding(check=check, verdict=Verdict.WARNING, said=said, remedy=remedy, service=service)


def _problem(check: str, said: str, remedy: str, service: str = "") -> Finding:
    return Finding(check=check, verdict=Verdict.PROBLEM, said=said, remedy=remedy, service=service)


def _not_checked(check: str, why: str = "needs macOS") -> Finding:
    return Finding(check=check, verdict=Verdict.NOT_CHECKED, said=f"not checked: {why}")


# ---- the configuration and who runs ----


def configuration(facts: Facts) -> Iterator[Finding]:
    """The same errors and warnings that `check` reports."""
    if facts.missing:
        yield _problem("configuration", f"{facts.config}: no such file", "anklet-supervisor init")
        return
    errors = [problem for problem in facts.problems if problem.severity is Severity.ERROR]
    for problem in facts.problems:
        if problem.severity is Severity.ERROR:
            yield _problem("configuration", str(problem), "fix it; `anklet-supervisor check` lists every error")
        else:
            yield _warning("configuration", str(problem), "fix it when convenient; jobs run all the same")
    if not errors:
        yield _ok("configuration", f"{facts.config}: no errors; services: {facts.services}")


def user(facts: Facts) -> Iterator[Finding]:
    """An ordinary user, not root."""
    if facts.root and facts.mac is None:
        yield _warning(
            "user", "running as root; on a Mac this must be an ordinary user", "run everything as an ordinary user"
        )
    elif facts.root:
        yield _problem(
            "user",
            "running as root; macOS runs VMs only for a logged-in user",
            "run everything as the user who is logged in at the desktop",
        )
    else:
        yield _ok("user", "not root")


# ---- VMs ----


def vm_tools(facts: Facts) -> Iterator[Finding]:
    """Each driver's tool: installed, of a known version, licensed."""
    for driver in facts.drivers:
        service = ", ".join(driver.services)
        if driver.error:
            remedy = f"install {driver.name} and its licence, or set another vm_driver (README: Set it up on a Mac)"
            yield _problem("VM tool", driver.error, remedy, service)
        else:
            yield _ok("VM tool", driver.product, service)


def templates(facts: Facts) -> Iterator[Finding]:
    """Templates to clone from; one that is not here is pulled for the first job that names it."""
    for driver in facts.drivers:
        if driver.vms is None:
            continue
        service = ", ".join(driver.services)
        found = sorted(vm.name for vm in driver.vms if _is_template(vm))
        if found:
            shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > len(found[:5]) else "")
            yield _ok("templates", f"{driver.name} has {shown}", service)
        else:
            yield _warning(
                "templates",
                f"{driver.name} has no template on this host; the first job of each template waits for its pull",
                f"use {driver.name} to pull the templates that your jobs name",
                service,
            )


def images(facts: Facts) -> Iterator[Finding]:
    """The images that services name in the configuration."""
    for driver in facts.drivers:
        for image in driver.images:
            service = ", ".join(image.services)
            if image.here:
                yield _ok("image", f"{image.name} is on this host", service)
                why = f"only a running VM of {image.name} shows whether it has {driver.name}'s guest agent; without it, ssh is used"
                yield _not_checked("guest agent", why)
            elif image.can_be_pulled:
                remedy = f"{driver.name} pull {image.name}"
                yield _warning(
                    "image", f"{image.name} is not on this host yet; the first job waits for its pull", remedy, service
                )
            else:
                yield _problem(
                    "image",
                    f"{image.name} is not on this host, and nothing pulls it",
                    f"create it with {driver.name}, or change the keys image and pull of these services",
                    service,
                )


def _is_template(vm: VMSeen) -> bool:
    """An image with a tag is listed again by its digest; that row does not count."""
    return not vm.running and not vm.name.startswith(NAME_PREFIX) and "@sha256:" not in vm.name


def registries(facts: Facts) -> Iterator[Finding]:
    """The registries that templates are pulled from."""
    for registry in facts.registries:
        service = ", ".join(registry.services)
        if registry.error:
            yield _warning(
                "registry",
                f"{registry.what} does not answer: {registry.error}; jobs can use only templates on this host",
                "check registry_url, the network and the registry",
                service,
            )
        else:
            yield _ok("registry", f"{registry.what} answers", service)


def origins(facts: Facts) -> Iterator[Finding]:
    """The plugins' own findings about where jobs come from."""
    yield from facts.origins


def stores(facts: Facts) -> Iterator[Finding]:
    """Redis, for the services that use it."""
    for store in facts.stores:
        service = ", ".join(store.services)
        if store.error:
            yield _problem(
                "Redis", store.error, "check Redis and the keys database.*; no job is claimed without Redis", service
            )
        else:
            yield _ok("Redis", f"{store.what} answers, and its version is supported", service)


# ---- the host ----


def disk(facts: Facts) -> Iterator[Finding]:
    """Free space for clones and pulls."""
    if facts.disk is None:
        yield _not_checked("disk", "cannot read the free space")
        return
    free, where = facts.disk
    said = f"{free / _GIB:.0f} GiB free at {where}"
    remedy = "delete unused templates and old logs"
    if free < _NO_DISK:
        yield _problem("disk", said + "; a clone may not fit", remedy)
    elif free < _SOME_DISK:
        yield _warning("disk", said + "; the next pull may not fit", remedy)
    else:
        yield _ok("disk", said)


def sleep_settings(facts: Facts) -> Iterator[Finding]:
    """A CI host stays awake and restarts after a power cut."""
    power = None if facts.mac is None else facts.mac.power
    if power is None:
        yield _not_checked("sleep")
        return
    if power.get("sleep", "0") != "0":
        yield _warning(
            "sleep",
            f"this Mac sleeps after {power['sleep']} minutes; the supervisor keeps it awake only while it runs",
            "sudo pmset -c sleep 0 disksleep 0",
        )
    else:
        yield _ok("sleep", "this Mac does not sleep when idle")
    if power.get("autorestart", "1") != "1":
        yield _warning("power cut", "this Mac stays off after a power cut", "sudo pmset -a autorestart 1")


def login(facts: Facts) -> Iterator[Finding]:
    """This user has a desktop session, also after a reboot, with an unlocked keychain."""
    mac = facts.mac
    if mac is None or mac.console_ours is None:
        yield _not_checked("login")
    elif mac.console_ours:
        yield _ok("login", "this user is logged in at the desktop")
    else:
        yield _problem(
            "login",
            "this user is not logged in at the desktop; macOS runs VMs only for a logged-in user",
            "log in at the screen or through Screen Sharing",
        )
    if mac is None:
        yield _not_checked("login after a reboot")
    elif mac.auto_login:
        yield _ok("login after a reboot", f"{mac.auto_login} logs in automatically")
    else:
        yield _warning(
            "login after a reboot",
            "automatic login is off, so no job runs after a reboot until someone logs in",
            "System Settings, Users & Groups, Automatically log in as (FileVault must be off)",
        )
    yield _keychain(mac)


def _keychain(mac: MacFacts | None) -> Finding:
    if mac is None or mac.keychain_unlocked is None:
        return _not_checked("login keychain")
    if mac.keychain_unlocked:
        return _ok("login keychain", "unlocked")
    return _warning(
        "login keychain",
        "locked; VM tools that keep keys there cannot start VMs",
        "security unlock-keychain login.keychain-db; to keep it unlocked: security set-keychain-settings login.keychain-db",
    )


def dhcp(facts: Facts) -> Iterator[Finding]:
    """The addresses of deleted VMs become free again soon."""
    if facts.mac is None:
        yield _not_checked("DHCP lease time")
        return
    lease = facts.mac.dhcp_lease
    if lease is not None and lease <= _LONGEST_DHCP_LEASE:
        yield _ok("DHCP lease time", f"{lease} s")
        return
    said = "a day (the default of macOS)" if lease is None else f"{lease} s"
    yield _warning(
        "DHCP lease time",
        f"{said}: macOS runs out of addresses after about 250 VMs within that time",
        "sudo defaults write /Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default.plist "
        "bootpd -dict DHCPLeaseTimeSecs -int 600",
    )


def leftover_vms(facts: Facts) -> Iterator[Finding]:
    """Unlisted VMs that take a place, and VMs of another installation."""
    listed = [vm for driver in facts.drivers for vm in driver.vms or ()]
    running = sum(vm.running for vm in listed)
    if facts.mac is None:
        yield _not_checked("leftover virtualization processes")
    elif any(driver.vms is None for driver in facts.drivers) or not facts.drivers:
        yield _not_checked("leftover virtualization processes", "the VMs cannot be listed")
    elif facts.mac.virtualization_processes > running:
        yield _warning(
            "leftover virtualization processes",
            f"{facts.mac.virtualization_processes} virtualization processes, but only {running} running VMs are listed; each "
            "process takes one of the two places",
            "quit other programs that run VMs; if there are none, reboot",
        )
    else:
        yield _ok("leftover virtualization processes", "none")
    foreign = [vm.name for vm in listed if _is_foreign(vm.name, facts.install_id)]
    if foreign:
        yield _warning(
            "foreign VMs",
            f"VMs of another Anklet: {', '.join(sorted(foreign))}; this one never deletes them",
            "delete them with the VM tool, unless another Anklet runs on this host",
        )
    elif listed or facts.drivers:
        yield _ok("foreign VMs", "none")


def _is_foreign(name: str, install_id: str | None) -> bool:
    if not name.startswith(NAME_PREFIX):
        return False
    parsed = parse_vm_name(name)
    return parsed is None or parsed.install_id != install_id


def port(facts: Facts) -> Iterator[Finding]:
    """The port of the metrics endpoint."""
    if facts.port is None:
        return
    if facts.supervisor is not None:
        yield _ok("port", f"{facts.port.what} belongs to the running supervisor (pid {facts.supervisor})")
    elif facts.port.error:
        yield _problem(
            "port",
            f"cannot listen on {facts.port.what}: {facts.port.error}",
            "quit the program that uses the port, or set another metrics.port",
        )
    else:
        yield _ok("port", f"{facts.port.what} is free")


def file_modes(facts: Facts) -> Iterator[Finding]:
    """Other users cannot read secrets or state, or change what we run."""
    bad = False
    for entry in facts.paths:
        finding = _file_mode(entry)
        if finding is not None:
            bad = True
            yield finding
    if not bad and facts.paths:
        there = [entry.what for entry in facts.paths if entry.mode is not None]
        yield _ok("file modes", f"private: {', '.join(there)}" if there else "no files yet")


def _file_mode(entry: PathFacts) -> Finding | None:
    if entry.mode is None:
        return None
    said = f"{entry.path} ({entry.what})"
    if not entry.ours:
        return _problem(
            "file modes",
            f"{said} belongs to another user",
            f"chown it to the user who runs the supervisor: {entry.path}",
        )
    if entry.secret and entry.mode & _OTHERS_MAY_READ:
        wanted = "700" if stat.S_ISDIR(entry.mode) else "600"
        return _warning("file modes", f"other users can read {said}", f"chmod {wanted} {entry.path}")
    if entry.mode & _OTHERS_MAY_WRITE:
        return _problem("file modes", f"other users can change {said}", f"chmod go-w {entry.path}")
    return None


def agent(facts: Facts) -> Iterator[Finding]:
    """The agent that starts the supervisor at login and after a crash."""
    loaded = None if facts.mac is None else facts.mac.agent_loaded
    if loaded is None:
        yield _not_checked("launchd agent")
    elif loaded and not facts.agent_current:
        yield _warning(
            "launchd agent",
            f"{facts.agent_label} is loaded, but its file differs from what `agent install` would write now",
            "anklet-supervisor agent install (drains first)",
        )
    elif loaded:
        yield _ok("launchd agent", f"{facts.agent_label} is loaded")
    else:
        yield _warning(
            "launchd agent",
            f"{facts.agent_label} is not loaded; the supervisor does not start at login",
            "anklet-supervisor agent install",
        )


_CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    configuration,
    user,
    vm_tools,
    templates,
    images,
    registries,
    origins,
    stores,
    disk,
    sleep_settings,
    login,
    dhcp,
    leftover_vms,
    port,
    file_modes,
    agent,
)


class _Document(msgspec.Struct, frozen=True):
    fit: bool
    findings: list[Finding]


def as_json(findings: list[Finding]) -> str:
    """The findings as JSON with stable keys: {"fit", "findings": [{"check", "verdict", "said", "remedy", "service"}]}."""
    return msgspec.json.format(msgspec.json.encode(_Document(fit(findings), findings)), indent=2).decode()
