"""The release download of the runner: a tarball of the stub in runner/, always the same bytes for the same name.

Owns the path of releases on the web site. The server answers with a redirect to a signed address, as GitHub does.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import re
import tarfile
from pathlib import Path

from emulators.github.engine.exchange import Refusal, Reply, not_found

RUNNER_DIR = Path(__file__).resolve().parents[1] / "runner"
_NAME = r"actions-runner-osx-(?P<arch>x64|arm64)-(?P<version>[0-9]+\.[0-9]+\.[0-9]+)\.tar\.gz"
_RELEASE = re.compile(rf"/actions/runner/releases/download/v(?P<tag>[^/]+)/{_NAME}")
_STORE = re.compile(rf"/_download/{_NAME}")


def answer(world, request):
    """Return the reply to a download, or None if the path is not a download."""
    release, stored = _RELEASE.fullmatch(request.path), _STORE.fullmatch(request.path)
    if request.method != "GET" or not (release or stored):
        return None
    if release and release["tag"] != release["version"]:
        raise not_found()
    match = release or stored
    if release and world.switches["download_redirect"]:
        name = request.path.rsplit("/", 1)[1]
        return Reply(302, None, {"Location": f"{request.urls.web}/_download/{name}?sp=r&sig=emulated"})
    if stored and "sig" not in request.query:
        raise Refusal(403, "Server failed to authenticate the request.")
    headers = {"Content-Type": "application/octet-stream"}
    return Reply(200, tarball(match["arch"], match["version"]), headers)


def sha256(arch, version):
    """The checksum of the tarball, in hexadecimal digits."""
    return hashlib.sha256(tarball(arch, version)).hexdigest()


@functools.cache
def tarball(arch, version):
    """The bytes of the .tar.gz: sorted names, no times, no owners."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(RUNNER_DIR.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(RUNNER_DIR).as_posix()
                data = path.read_bytes()
                if name == "bin/version":
                    data = f"{version}\n".encode()
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(data)
                member.mode = 0o755 if data.startswith(b"#!") else 0o644
                archive.addfile(member, io.BytesIO(data))
        mark = f"osx-{arch}\n".encode()
        member = tarfile.TarInfo("./bin/platform")
        member.size, member.mode = len(mark), 0o644
        archive.addfile(member, io.BytesIO(mark))
    return gzip.compress(raw.getvalue(), mtime=0)
