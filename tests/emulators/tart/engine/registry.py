"""The registry of images, and pulls from it.

Owns the remote images and the local changes of a pull. Knows no command line.
"""

from __future__ import annotations

import os

from emulators.vmhost import trees
from emulators.vmhost.guest import write_all
from emulators.vmhost.state import new_uuid

from . import library, locks
from .failure import TartError
from .names import parse_remote


def _say(line):
    write_all(1, f"{line}\n".encode())


def pull(call, remote):
    """Fetch an image into the cache and point its tag at it."""
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
        _link(call.store, remote, path, link)


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
    with store.transaction() as tx:
        available = reclaim(tx, entry["disk_gb"] * 10**9, keep=None)
    if entry["disk_gb"] * 10**9 > available:
        raise TartError("You can't save the file because the volume is out of space.", foreign=True)
    with library.workplace(store) as folder:
        disk = _new_disk(entry)
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


def _new_disk(entry):
    facts = {key: entry[key] for key in ("os", "disk_gb", "size_gb", "agent", "sshd", "host_key")}
    return {**facts, "uuid": new_uuid()}


def leave_corrupt(tx, name):
    """Leave an image that looks complete but whose clones do not start, as an interrupted pull may."""
    remote, entry = parse_remote(name), tx.registry[name]
    path = library.image_path(tx.store, remote.by_digest(entry["digest"]))
    library.write(path, entry["config"], {**_new_disk(entry), "corrupt": True})
    _link(tx.store, remote, path, library.image_path(tx.store, remote))


def reclaim(tx, wanted, *, keep):
    """Make room for `wanted` bytes by removing the images that were used longest ago, unless TART_NO_AUTO_PRUNE is set.

    Removes nothing if even all of them would not free enough. Returns the free bytes afterwards.
    """
    free = tx.settings["disk_available"]
    if "TART_NO_AUTO_PRUNE" in os.environ or wanted <= free:
        return free
    found = [image for image in library.images(tx.store) if not os.path.islink(image.path) and image.path != keep]
    found.sort(key=lambda image: os.stat(image.path).st_atime)
    if sum(image.disk()["size_gb"] * 10**9 for image in found) < wanted - free:
        return free
    while found and free < wanted:
        image = found.pop(0)
        disk = image.disk()
        free += disk["size_gb"] * 10**9
        library.discard(tx.store, image.path)
        tx.event("pruned", {"uuid": disk["uuid"], "name": image.name})
    library.collect_images(tx.store)
    tx.state["settings"]["disk_available"] = free
    return free


def _link(store, remote, path, link):
    if remote.is_digest:
        with open(os.path.join(path, ".explicitly-pulled"), "w", encoding="utf-8"):
            return
    if os.path.lexists(link):
        os.unlink(link)
    os.symlink(path, link)
    library.collect_images(store)
