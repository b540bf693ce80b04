"""Names of remote images: host/namespace:tag or host/namespace@sha256:digest.

Owns their grammar. A name without a slash is a local VM's.
"""

from __future__ import annotations

import re

from .failure import TartError

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class RemoteName:
    """A parsed remote name: host, namespace, and reference (a tag, or `sha256:...`)."""

    def __init__(self, host, namespace, reference):
        self.host = host
        self.namespace = namespace
        self.reference = reference

    def __str__(self):
        return f"{self.host}/{self.namespace}{'@' if self.is_digest else ':'}{self.reference}"

    @property
    def is_digest(self):
        """True for a name by digest."""
        return self.reference.startswith("sha256:")

    def path(self):
        """The path below cache/OCIs."""
        return f"{self.host}/{self.namespace}/{self.reference}"

    def by_digest(self, digest):
        """The same image's name, by its digest."""
        return RemoteName(self.host, self.namespace, digest)


def parse_remote(name):
    """Return the RemoteName; raises TartError for text that does not parse."""
    host, slash, rest = name.partition("/")
    if not slash or not _HOST.fullmatch(host):
        raise TartError(f"failed to parse remote name: mismatched input '{name[len(host) :] or '<EOF>'}' expecting '/'")
    if "@" in rest:
        namespace, _, reference = rest.partition("@")
        if not re.fullmatch("sha256:[0-9a-f]{64}", reference):
            raise TartError("failed to parse remote name: unknown reference format")
    else:
        namespace, colon, reference = rest.partition(":")
        reference = reference if colon else "latest"
        if not _PART.fullmatch(reference):
            raise TartError(f"failed to parse remote name: extraneous input '{reference}'")
    if not all(_PART.fullmatch(part) for part in namespace.split("/")):
        raise TartError(f"failed to parse remote name: no viable alternative at input '{namespace}'")
    return RemoteName(host, namespace, reference)


def is_remote(name):
    """True for a name that parses as a remote one."""
    try:
        parse_remote(name)
    except TartError:
        return False
    return True
