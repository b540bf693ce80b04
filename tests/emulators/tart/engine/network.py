"""Addresses of guests: the assignment of addresses, the lease file that outlives guests, and the results of `tart ip`.

Owns the lease file's format (that of macOS's bootpd) and the rule that a lease does not prove that its VM runs.
"""

from __future__ import annotations

import re
import time

from . import library

_NET = "192.168.64."


def give_address(tx, mac):
    """The address that the guest with this MAC gets: its previous one if that is free."""
    addresses = tx.state["addresses"]
    taken = {op["ip"] for op in tx.ops("run")}
    before = addresses.get(mac)
    if before is None or before in taken:
        number = next(n for n in range(2 + len(addresses), 10_000) if _address(n) not in taken)
        addresses[mac] = _address(number)
    if tx.settings["stale_lease"]:
        _write_lease(tx, mac, "192.168.64.254", -60)
    return addresses[mac]


def _address(number):
    return f"{_NET}{2 + (number - 2) % 248}"


def _write_lease(tx, mac, ip, later):
    until = int(time.time() + tx.settings["lease_seconds"] + later)
    short = ":".join(part.lstrip("0") or "0" for part in mac.split(":"))  # bootpd writes no leading zeros
    lease = f"{{\n\tname=admins-Virtual-Machine\n\tip_address={ip}\n\thw_address=1,{short}\n"
    lease += f"\tidentifier=1,{short}\n\tlease=0x{until:x}\n}}\n"
    with open(tx.store.path("dhcpd_leases"), "a", encoding="utf-8") as file:
        file.write(lease)


def _leased(store, mac):
    """The address of the newest lease of this MAC that has not expired, or None."""
    try:
        with open(store.path("dhcpd_leases"), encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    found = []
    for block in re.findall(r"\{\n(.*?)\n\}", text, re.DOTALL):
        lease = dict(line.strip().split("=", 1) for line in block.splitlines())
        if [int(part, 16) for part in lease["hw_address"][2:].split(":")] == [int(part, 16) for part in mac.split(":")]:
            found.append((int(lease["lease"], 16), lease["ip_address"]))
    return max((entry for entry in found if entry[0] > time.time()), default=(0, None))[1]


def look(call, name, resolver):
    """One look of `tart ip`: the address, or None. For its first looks a running VM has none, as the switch says."""
    vm = library.open_local(call.store, name)
    with call.store.transaction() as tx:
        machine = tx.machine_of(vm)
        there = machine is not None and _has_booted(tx, machine)
        if there and not machine["leased"]:
            machine["leased"] = True
            _write_lease(tx, machine["mac"], machine["ip"], 0)
    if resolver == "dhcp":
        return _leased(call.store, vm.config()["macAddress"])
    if resolver == "agent":
        there = there and vm.disk()["agent"] and call.settings["guest_agent"]
    return machine["ip"] if there else None


def _has_booted(tx, machine):
    machine["polls"] += 1
    return machine["polls"] > tx.settings["ip_after_polls"]


def at(tx, ip):
    """The hypervisor's operation of the VM that has this address, or None."""
    return next((op for op in tx.ops("run") if op["ip"] == ip and not op.get("stopping")), None)
