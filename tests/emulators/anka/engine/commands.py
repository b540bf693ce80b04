"""The commands: parse the options, act, answer.

Owns each command's options, positionals and reply. Knows nothing of locks and the inner workings of processes.
"""

from __future__ import annotations

import json
import os
import sys

from emulators.vmhost import guest, trees
from emulators.vmhost.options import MANY, VALUE, UsageError, option, parse

from . import copying, lifecycle, registry
from .disk import utc
from .failure import AnkaError, not_found
from .reply import Reply, grid, table

_STATUS_FIELDS = ("name", "uuid", "creation_date", "version", "status")
_LIST_FIELDS = ("name", "status", "uuid", "version", "access_date", "ip", "vnc_port")


def version(call, args):
    """`version`."""
    parse(args, {}, most=0)
    s = call.settings
    body = {"product": s["product"], "version": s["version"], "build": s["build"]}
    return Reply(body, f"{s['product']} version {s['version']} (build {s['build']})", action=False)


def license_(call, args):
    """`license show`."""
    parsed = parse(args, {}, least=1, most=1)
    if parsed.positionals != ["show"]:
        raise UsageError(f"license: command not emulated: {parsed.positionals[0]}")
    s = call.settings
    body = {
        "license_type": s["license_type"],
        "status": s["license_status"],
        "expires": s["license_expires"],
        "product": s["product"],
    }
    return Reply(body, table(body), action=False)


def list_(call, args):
    """`list`."""
    known = {
        **option("-r", "--running"),
        **option("-s", "--stopped"),
        **option("-a", "--all"),
        **option("-f", "--field", kind=MANY),
    }
    parsed = parse(args, known)
    if not call.settings["eula_accepted"]:
        raise AnkaError("EULA needs to be accepted")
    wanted = {status for status in ("running", "stopped") if parsed[status] and not parsed["all"]}
    with call.store.transaction() as tx:
        vms = [lifecycle.resolve(tx, subject) for subject in parsed.positionals] or list(tx.vms.values())
        rows = [_row(tx, vm) for vm in vms if not wanted or vm["status"] in wanted]
    rows = _fields(rows, [part for given in parsed["field"] or () for part in given.split(",")])
    return _list_reply(call.settings["empty_list"], rows)


def _row(tx, vm):
    row = {"name": vm["name"], "uuid": vm["uuid"], "creation_date": utc(vm["created"])}
    if vm["tag"]:
        row["version"] = vm["tag"]
    row["status"] = vm["status"]
    row["access_date"] = utc(vm["accessed"])
    ip = lifecycle.address(tx, vm, count=False)
    if ip is not None:
        row["ip"] = ip
    return row


def _fields(rows, wanted):
    """Apply `-f`: NAME chooses a column, NAME=TEXT keeps the rows that contain TEXT in it."""
    columns = []
    for part in wanted:
        name, is_filter, text = part.partition("=")
        if name not in _LIST_FIELDS:
            raise UsageError(f"list: unknown field: {name}")
        if is_filter:
            rows = [row for row in rows if text in str(row.get(name, ""))]
        else:
            columns.append(name)
    chosen = columns or _STATUS_FIELDS
    return [{key: row[key] for key in row if key in chosen} for row in rows]


def _list_reply(empty, rows):
    reply = Reply(rows, action=False)
    if rows:
        columns = [name for name in (*_STATUS_FIELDS, *_LIST_FIELDS) if any(name in row for row in rows)]
        columns = list(dict.fromkeys(columns))
        reply.text = grid([columns, *([row.get(name, "") for name in columns] for row in rows)])
    else:
        reply.envelope = {
            "[]": '{"status": "OK", "body": []}',
            "null": '{"status": "OK", "body": null}',
            "missing": '{"status": "OK"}',
            "nothing": "",
        }[empty]
    return reply


def show(call, args):
    """`show`."""
    parsed = parse(args, {**option("-t", "--tag", kind=VALUE), **option("--current")}, least=1, most=2)
    subject, item = (*parsed.positionals, None)[:2]
    with call.store.transaction() as tx:
        vm = lifecycle.resolve(tx, subject)
        if parsed["tag"] is not None and parsed["tag"] not in vm["tags"]:
            raise not_found(parsed["tag"])
        body = lifecycle.describe(tx, vm)
    if item is not None:
        body = _item(vm, body, item, current=parsed["current"])
    return Reply(body, table(body) if isinstance(body, dict) else json.dumps(body), action=False)


def _item(vm, body, item, *, current):
    items = {
        "name": {"name": vm["name"]},
        "uuid": {"uuid": vm["uuid"]},
        "cpu": {"cores": vm["cores"]},
        "ram": {"size": vm["ram"]},
        "disk": {"size": body["hard_drive"], "data_size": body["image_size"]},
        "network": {
            "mode": "shared",
            "controller": "virtio-net",
            "port_forwarding_rules": [],
            **{key: body[key] for key in ("ip", "mac", "hostif") if key in body},
        },
        "tag": [{"tag": tag} for tag in vm["tags"] if not current or tag == vm["tag"]],
    }
    if item not in items:
        raise not_found(item)
    return items[item]


def clone(call, args):
    """`clone`."""
    parsed = parse(args, {**option("-c", "--copy"), **option("-t", "--tag", kind=VALUE)}, least=1)
    source, *names = parsed.positionals
    uuids = [lifecycle.clone(call, source, name, parsed["tag"]) for name in names or [None]]
    body = uuids[0] if call.settings["clone_body"] == "uuid" else {}
    return Reply(body, "\n".join(uuids))


def start(call, args):
    """`start`."""
    known = {
        **option("-f", "--force"),
        **option("-q", "--quiet"),
        **option("-v", "--view"),
        **option("-u", "--update-addons"),
        **option("--login-passwd", kind=VALUE),
        **option("--mount", kind=MANY),
        **option("--disable-auto-mount"),
    }
    subject = parse(args, known, least=1, most=1).positionals[0]
    lifecycle.start(call, subject)
    with call.store.transaction() as tx:
        body = lifecycle.describe(tx, lifecycle.resolve(tx, subject), subject_polls=False)
    return Reply(body if call.settings["start_body"] == "show" else {}, table(body))


def stop(call, args):
    """`stop`."""
    parsed = parse(args, {**option("-f", "--force"), **option("-a", "--all")})
    for subject in _subjects(call, parsed, status="running"):
        lifecycle.stop(call, subject, force=bool(parsed["force"]))
    return Reply()


def _subjects(call, parsed, status=None):
    if not parsed["all"]:
        if not parsed.positionals:
            raise UsageError("missing argument")
        return parsed.positionals
    with call.store.transaction() as tx:
        return [uuid for uuid, vm in tx.vms.items() if status in (None, vm["status"])]


def suspend(call, args):
    """`suspend`."""
    for subject in parse(args, {}, least=1).positionals:
        lifecycle.suspend(call, subject)
    return Reply()


def reboot(call, args):
    """`reboot`."""
    parsed = parse(args, option("-f", "--force"), least=1, most=1)
    lifecycle.reboot(call, parsed.positionals[0])
    return Reply()


def delete(call, args):
    """`delete`: without --yes, asks for each VM and reads the answer from standard input."""
    known = {
        **option("-a", "--all"),
        **option("-t", "--tag", kind=VALUE),
        **option("--yes"),
        **option("--cache"),
    }
    parsed = parse(args, known)
    for subject in _subjects(call, parsed):
        with call.store.transaction() as tx:
            vm = lifecycle.resolve(tx, subject)
        if not parsed["yes"] and not _agreed(f"are you sure you want to delete vm {vm['uuid']} {vm['name']} [y/N]: "):
            raise AnkaError("Aborted!", status=call.settings["declined_exit"])
        if parsed["tag"] is not None:
            lifecycle.delete_tag(call, subject, parsed["tag"])
        else:
            lifecycle.delete(call, subject)
    return Reply()


def _agreed(question):
    guest.write_all(1, question.encode())
    answer = b""
    while not answer.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        answer += byte
    return answer.strip().lower() in (b"y", b"yes")


def modify(call, args):
    """`modify VM cpu N`, `modify VM ram 4G`, and the old spelling with `set` before the item."""
    positionals = parse(args, {}, least=3, most=4).positionals
    if len(positionals) == 4 and positionals[1] == "set":
        del positionals[1]
    subject, item, value = positionals[:3]
    if len(positionals) == 4:
        raise UsageError(f"unexpected argument: {positionals[3]}")
    lifecycle.modify(call, subject, item, value)
    return Reply()


def cp(call, args):
    """`cp`."""
    known = {}
    for letter in "RLHPfnpav":
        known.update(option(f"-{letter}"))
    parsed = parse(args, known, least=2, most=2)
    source, target = parsed.positionals
    home = copying.home_for(call, copying.sides(source, target))
    recursive = bool(parsed["R"] or parsed["a"])
    last = [letter for arg in args if arg[:1] == "-" for letter in arg if letter in "LHPa"]
    links_kept = recursive and (not last or last[-1] in "Pa")
    mode = trees.CopyMode(
        follow=not links_kept,
        preserve=bool(parsed["p"] or parsed["a"]),
        clobber=not parsed["n"],
        force=bool(parsed["f"]),
    )
    call.pause()
    copying.copy(home, source, target, mode, recursive=recursive)
    return Reply(text=f"{source} -> {target}" if parsed["v"] else "")


_REMOTE = {
    **option("-r", "--remote", kind=VALUE),
    **option("-a", "--registry-path", kind=VALUE),
    **option("--insecure"),
    **option("--cert", kind=VALUE),
    **option("--key", kind=VALUE),
    **option("--cacert", kind=VALUE),
    **option("--api-key-id", kind=VALUE),
    **option("--api-key", kind=VALUE),
    **option("-o", kind=VALUE),
    **option("-p", kind=VALUE),
    **option("-u", kind=VALUE),
    **option("-l", "--list"),
}


def registry_(call, args):
    """`registry [options] list|list-repos|show|pull`."""
    before = parse(args, _REMOTE, interleaved=False)
    remote = before["remote"] or before["registry-path"]
    if not before.positionals:
        if before["list"]:
            return _repositories(call)
        raise UsageError("registry: missing command")
    command, *rest = before.positionals
    if command == "pull":
        return pull(call, rest, remote)
    if command == "list-repos":
        parse(rest, option("-d", "--default"), most=0)
        return _repositories(call)
    if command not in ("list", "show"):
        raise UsageError(f"registry: unknown command: {command}")
    parsed = parse(rest, option("-t", "--tag", kind=VALUE) if command == "show" else {}, most=2)
    with call.store.transaction() as tx:
        registry.reach(tx, remote)
        rows = registry.rows(tx)
        if command == "show":
            if not parsed.positionals:
                raise UsageError("missing argument")
            template, tag = registry.find(tx, parsed.positionals[0], parsed["tag"])
            body = registry.describe(template, tag)
    if command == "show":
        return Reply(body, table(body), action=False)
    return Reply(rows, grid([("uuid", "name", "latest"), *(list(row.values()) for row in rows)]), action=False)


def _repositories(call):
    url = call.settings["registry_url"] or "http://registry.invalid:8089"
    rows = [{"name": "registry", "url": url, "default": True}]
    return Reply(rows, grid([("name", "url", "default"), *(list(row.values()) for row in rows)]), action=False)


def pull(call, args, remote=None):
    """`pull` and `registry pull`."""
    known = {
        **option("-t", "--tag", kind=VALUE),
        **option("-l", "--local"),
        **option("--fetch-only"),
        **option("-s", "--shrink"),
        **option("--check-download-size"),
        **option("-q", "--quiet"),
    }
    parsed = parse(args, known, least=1, most=2)
    subject = parsed.positionals[0]
    remote = (*parsed.positionals, remote)[1]
    if parsed["local"]:
        with call.store.transaction() as tx:
            registry.check_out_local(tx, lifecycle.resolve(tx, subject), parsed["tag"])
        return Reply()
    request = registry.PullRequest(
        subject, parsed["tag"], shrink=bool(parsed["shrink"]), fetch_only=bool(parsed["fetch-only"])
    )
    if parsed["check-download-size"]:
        with call.store.transaction() as tx:
            registry.reach(tx, remote)
            body = registry.download_size(tx, request)
        return Reply(body, message=f"{subject}: available locally" if body is None else "")
    here = registry.pull(call, request, remote)
    reply = Reply(message=f"{subject}: available locally" if here else "")
    if not here:
        count = call.settings["pull_progress_lines"]
        reply.lines_before = [
            json.dumps({"status": "OK", "body": {"progress": 100 * n // count}, "message": "downloading"})
            for n in range(1, count + 1)
        ]
    reply.newline = call.settings["pull_newline"]
    return reply


def log_noise(call):
    """Write the output of `--debug` and of the noise switch to standard error."""
    if call.debug:
        sys.stderr.write(f"debug: anka {' '.join(call.argv)}\n")
    if call.settings["stderr_noise"]:
        sys.stderr.write(call.settings["stderr_noise"] + "\n")
