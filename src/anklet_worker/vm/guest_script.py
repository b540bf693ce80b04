"""Wraps a script for a guest so that its end is seen: what goes to `bash -s` on standard input, and what comes back.

VM tools treat a guest's output and exit status in different ways, and may lose the guest. So the script reports its own end:
its last line carries a nonce and the exit status. Knows no tool.
"""

from __future__ import annotations

import base64
import re
import secrets

from anklet_worker.contract.guest import GuestResult

#: Bytes at the end of a guest command's output that a result keeps.
_OUTPUT_TAIL = 64 * 1024

#: The braces make bash read everything before it runs anything: input that breaks off runs nothing at all. The script goes into
#: a file, so that none of its commands can read the rest of it as input. Its output goes into a file too: background processes
#: that it leaves do not hold our stream open, and only the tail that is kept crosses. Both files are in the guest's home, which
#: is deleted with the VM.
_WRAPPER = """\
{{
cd ~ || exit
export HOME="${{HOME:-$PWD}}"
folder=$(mktemp -d "$PWD/.anklet.XXXXXXXX") || exit
base64 --decode >"$folder/script" <<'anklet-{nonce}' || exit
{encoded}\
anklet-{nonce}
bash "$folder/script" </dev/null >"$folder/output" 2>&1
status=$?
tail -c {tail} "$folder/output"
rm -rf "$folder"
{end}
exit 0
}}
"""
_LINGER = "; sleep 0.1; echo"
_END = "printf '\\nanklet-end-%s %s\\n' {nonce} \"$status\""


def new_nonce() -> str:
    """A random mark for the end of one script."""
    return secrets.token_hex(16)


def wrapped(script: str, nonce: str, *, lingers: bool = False) -> bytes:
    """The script as input for `bash -s`, with a last line that reports its status. `lingers`: see `end_line`."""
    encoded = base64.encodebytes(script.encode(errors="surrogateescape")).decode()
    end = end_line(nonce, lingers=lingers)
    return _WRAPPER.format(nonce=nonce, encoded=encoded, tail=_OUTPUT_TAIL, end=end).encode()


def end_line(nonce: str, *, lingers: bool = False) -> str:
    """The line of bash that reports the end, with the status in `$status`.

    `lingers`: the shell stays a moment longer, for a tool that drops unread output when the command ends.
    """
    return _END.format(nonce=nonce) + (_LINGER if lingers else "")


def result_in(text: str, nonce: str) -> GuestResult | None:
    """The script's status and the tail of its output; None when `text` does not contain its end."""
    seen = re.search(rf"^anklet-end-{nonce} ([0-9]{{1,3}})\r?$", text, re.MULTILINE)
    return None if seen is None else GuestResult(status=int(seen[1]), output=text[: seen.start()].rstrip("\n"))
