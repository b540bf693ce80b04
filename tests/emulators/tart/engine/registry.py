"""The registry of images, and pulls from it.

Owns what is to be had remotely and what a pull changes locally. Knows no command line.
"""

from __future__ import annotations

import os

from emulators.vmhost import trees
from emulators.vmhost.guest import write_all
from emulators.vmhost.state import new_uuid

from . import library, locks
from .failure import TartError


def _say(line):
    write_all(1, f"{line}\n".encode())


def pull(call, remote):
    """Fetch an image into the cache and let its tag lead to it."""
    _say(f"pulling {remote}...")
    _say("pulling manifest...")
    entry = _manifest(call, remote)
    by_digest = remote.by_digest(entry["digest"])
    path, link = (library.image_path(call.store, name) for name in (by_digest, remote))
    if _is_linked(path, link):
        _say(f"{by_digest} image is already cached and linked!")
        return
    host = call.store.tart_path("cache", "OCIs", remote.host)
    os.makedirs(host, exist_ok=True)
    with locks.folder(host, lambda: _say("waiting for lock...")):
        if not library.VM(path, "").is_whole:
            _download(call, remote, entry, path)
        else:
            _say(f"{by_digest} image is already cached! creating a symlink...")
        _link(call, remote, path, link)


def _manifest(call, remote):
    with call.store.transaction() as tx:
        settings, found = tx.settings, tx.registry.get(str(remote))
        if found is None and remote.is_digest:
            found = next((entry for entry in tx.registry.values() if entry["digest"] == remote.reference), None)
        present = any(name.startswith(f"{remote.host}/{remote.namespace}:") for name in tx.registry)
    if settings["registry"] == "down":
        raise TartError(settings["registry_down_message"], foreign=True)
    if settings["registry"] == "auth" or not _logged_in(settings):
        text = "received unexpected HTTP status code 401 while retrieving an authentication token"
        raise TartError(f'AuthFailed(why: "{text}", details: "")', foreign=True)
    if found is None:
        code = "MANIFEST_UNKNOWN" if present else "NAME_UNKNOWN"
        details = f'{{\\"errors\\":[{{\\"code\\":\\"{code}\\",\\"message\\":\\"{code.lower().replace("_", " ")}\\"}}]}}'
        text = f'UnexpectedHTTPStatusCode(when: "pulling manifest", code: 404, details: "{details}")'
        raise TartError(text, foreign=True)
    return found


def _logged_in(settings):
    wanted = settings["registry_user"]
    if wanted is None:
        return True
    given = [os.environ.get("TART_REGISTRY_USERNAME"), os.environ.get("TART_REGISTRY_PASSWORD")]
    return list(wanted) == given


def _is_linked(path, link):
    return library.VM(path, "").is_whole and (path == link or os.path.realpath(link) == os.path.realpath(path))


def _download(call, remote, entry, path):
    store = call.store
    if entry["disk_gb"] * 10**9 > call.settings["disk_available"]:
        text = "You can't save the file because the volume is out of space."
        raise TartError(text, foreign=True)
    folder = library.temporary(store)
    with locks.folder(folder):
        disk = {key: entry[key] for key in ("os", "disk_gb", "size_gb", "agent", "sshd", "host_key")}
        disk = {**disk, "uuid": new_uuid()}
        with store.transaction() as tx:
            op = tx.begin_op("pull", image=str(remote), digest=entry["digest"])
            others = [other["image"] for other in tx.ops("pull") if other is not tx.state["ops"][op]]
            if others:
                tx.event("pull-overlap", image=str(remote), others=others)
        _say("pulling disk...")
        call.pause()
        library.write(folder, entry["config"], disk)
        os.makedirs(store.guest_home(disk["uuid"]), exist_ok=True)
        if entry["home"]:
            trees.copy(entry["home"], store.guest_home(disk["uuid"]))
        with store.transaction() as tx:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.rename(folder, path)
            tx.end_op(op)
            tx.event("pulled", {"uuid": disk["uuid"], "name": str(remote)}, tag=remote.reference)


def _link(call, remote, path, link):
    if remote.is_digest:
        with open(os.path.join(path, ".explicitly-pulled"), "w", encoding="utf-8"):
            return
    if os.path.lexists(link):
        os.unlink(link)
    os.symlink(path, link)
    library.collect_images(call.store)
