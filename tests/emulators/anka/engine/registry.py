"""The template registry, and pulls from it.

Owns the remote templates, the local changes of a pull, and the damage of two simultaneous pulls. Knows no command line.
A local template's `tags` maps a tag to the folder of that tag's guest home (or None).
"""

from __future__ import annotations

from emulators.vmhost import trees

from .disk import utc
from .failure import NOT_FOUND, AnkaError, configured, not_found
from .lifecycle import new_vm


class PullRequest:
    """The request of a pull: the template (uuid or name), a tag (None: the latest), and its switches."""

    def __init__(self, subject, tag, *, shrink=False, fetch_only=False):
        self.subject = subject
        self.tag = tag
        self.shrink = shrink
        self.fetch_only = fetch_only


def reach(tx, remote):
    """Raise an error if the registry does not answer at `remote`, or the licence allows no registry."""
    if tx.settings["license_type"] == "com.veertu.anka.develop":
        raise AnkaError("registry: not permitted by the license")
    url = tx.settings["registry_url"]
    if tx.settings["registry_down"] or (url and remote and remote.rstrip("/") != url.rstrip("/")):
        raise configured(tx.settings, "registry_down", remote or "")


def find(tx, subject, tag):
    """The registry's template and the requested tag; raises code 3 if either does not exist."""
    for template in tx.registry.values():
        if subject in (template["uuid"], template["name"]):
            break
    else:
        raise not_found(subject)
    if tag is None:
        tag = template["tags"][-1]["tag"]
    elif tag not in [entry["tag"] for entry in template["tags"]]:
        raise AnkaError(tx.settings["tag_missing_message"].format(id=subject, tag=tag), NOT_FOUND)
    return template, tag


def rows(tx):
    """The body of `registry list`."""
    return [{"uuid": t["uuid"], "name": t["name"], "latest": t["tags"][-1]["tag"]} for t in tx.registry.values()]


def describe(template, tag):
    """The body of `registry show`."""
    entry = _entry(template, tag)
    return {
        "uuid": template["uuid"],
        "name": template["name"],
        "version": tag,
        "creation_date": utc(template["created"]),
        "cpu_cores": 4,
        "ram": "8G",
        "ram_size": 8 * 1024**3,
        "hard_drive": 128 * 1024**3,
        "image_size": entry["size"],
        "arch": 2,
    }


def download_size(tx, request):
    """The body of `--check-download-size`, or None if the tag is local."""
    template, tag = find(tx, request.subject, request.tag)
    local = tx.vms.get(template["uuid"])
    if local and tag in local["tags"]:
        return None
    return _sizes(tx, template, tag)


def _sizes(tx, template, tag):
    """Bytes of the tag, bytes already local in other tags' layers, and bytes free on disk."""
    local = tx.vms.get(template["uuid"])
    cached = max([_entry(template, t)["cached"] for t in local["tags"] if _has(template, t)], default=0) if local else 0
    size = _entry(template, tag)["size"]
    return {"size": size, "cached": min(cached, size), "available": tx.settings["disk_available"]}


def _has(template, tag):
    return any(entry["tag"] == tag for entry in template["tags"])


def _entry(template, tag):
    return next(entry for entry in template["tags"] if entry["tag"] == tag)


def pull(call, request, remote):
    """Fetch a template's tag and check it out. Returns True if it was already local."""
    with call.store.transaction() as tx:
        template, tag = _begin(tx, request, remote)
        if template is None:
            return True
        op = tx.begin_op("pull", **_op_fields(template, tag))
    call.pause()
    with call.store.transaction() as tx:
        spoilt = tx.state["ops"][op].get("spoilt")
        tx.end_op(op)
        if spoilt:
            raise AnkaError(f"{request.subject}: failed to checkout: Input/output error", 5)
        _check_out(tx, template, tag, request)
    return False


def _op_fields(template, tag):
    return {"uuid": template["uuid"], "name": template["name"], "tag": tag, "image": _entry(template, tag)["home"]}


def _begin(tx, request, remote):
    """Check that the pull can start; (None, None) if the local copy answers instead."""
    try:
        reach(tx, remote)
    except AnkaError:
        local = [vm for vm in tx.vms.values() if request.subject in (vm["uuid"], vm["name"])]
        if tx.settings["pull_failback"] and local and (request.tag is None or request.tag in local[0]["tags"]):
            return None, None
        raise
    template, tag = find(tx, request.subject, request.tag)
    local = tx.vms.get(template["uuid"])
    _refuse_second_pull(tx, template)
    if local and local["status"] == "running":
        raise configured(tx.settings, "running", request.subject)
    if local and local.get("blocked"):
        raise AnkaError(f"{request.subject}: Resource busy", 16)
    if local and tag in local["tags"]:
        _check_out(tx, template, tag, request)
        return None, None
    sizes = _sizes(tx, template, tag)
    if sizes["size"] - sizes["cached"] > sizes["available"]:
        raise configured(tx.settings, "no_space", request.subject)
    return template, tag


def _refuse_second_pull(tx, template):
    pulls = tx.ops("pull")
    if pulls:
        tx.event("pull-overlap", uuid=template["uuid"], others=[op["uuid"] for op in pulls])
    for op in pulls:
        if op["uuid"] == template["uuid"]:
            op["spoilt"] = True
            vm = tx.vms.get(template["uuid"])
            if vm:
                vm["corrupt"] = "failed to start: No such file or directory"
            tx.event("corruption", uuid=template["uuid"], name=template["name"], reason="two pulls at once")
            raise AnkaError(f"{template['name']}: failed to checkout: Input/output error", 5)


def _check_out(tx, template, tag, request):
    entry = _entry(template, tag)
    vm = tx.vms.setdefault(template["uuid"], new_vm(template["uuid"], template["name"]))
    fresh = tag not in vm["tags"]
    vm["tags"][tag] = entry["home"]
    if request.shrink:
        vm["tags"] = {tag: entry["home"]}
    if not request.fetch_only:
        trees.remove(tx.store.path("guests", vm["uuid"]))
        vm.update(tag=tag, image=entry["home"], image_size=entry["size"])
        if fresh:
            vm["corrupt"] = None
    if fresh:
        tx.event("pulled", vm, tag=tag)


def check_out_local(tx, vm, tag):
    """`pull -l`: reset the template's state to a local tag (None: the current one)."""
    tag = tag or vm["tag"]
    if tag not in vm["tags"]:
        raise not_found(tag or vm["name"])
    if vm["status"] == "running":
        raise configured(tx.settings, "running", vm["name"])
    vm.update(tag=tag, image=vm["tags"][tag], status="stopped")
