"""A script for a guest, wrapped so that its end is seen: what goes to `bash -s` on standard input, and what comes back.

What tools make of a guest's output and exit status differs, and a tool may lose its guest: the script's own last line, which
bears a nonce, says that it ended, and how. Knows no tool.
"""

from __future__ import annotations

import base64
import re
import secrets

from anklet_worker.contract.guest import GuestResult

#: Bytes of a guest command's output that are handed back.
_OUTPUT_TAIL = 64 * 1024

#: The braces make bash read it all before it does any of it: input that breaks off does nothing at all. The script is a file,
#: so that no command in it can read the rest as its input. Its output is one, too, so that what it leaves running in the
#: background does not hold our stream; and no more of it crosses than is kept. Both are in the home, which goes with the VM.
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
    """What marks the end of one script, and of no other."""
    return secrets.token_hex(16)


def wrapped(script: str, nonce: str, *, lingers: bool = False) -> bytes:
    """The script for `bash -s`, with a last line that tells its status. See `end_line`."""
    encoded = base64.encodebytes(script.encode(errors="surrogateescape")).decode()
    end = end_line(nonce, lingers=lingers)
    return _WRAPPER.format(nonce=nonce, encoded=encoded, tail=_OUTPUT_TAIL, end=end).encode()


def end_line(nonce: str, *, lingers: bool = False) -> str:
    """The line of bash that reports the end, with the status in `$status`.

    `lingers`: stays for a moment afterwards, for a tool that drops what it has not read when the command ends.
    """
    return _END.format(nonce=nonce) + (_LINGER if lingers else "")


def result_in(text: str, nonce: str) -> GuestResult | None:
    """How the script ended, and the tail of what it printed; None when its end is not in `text`."""
    seen = re.search(rf"^anklet-end-{nonce} ([0-9]{{1,3}})\r?$", text, re.MULTILINE)
    return None if seen is None else GuestResult(status=int(seen[1]), output=text[: seen.start()].rstrip("\n"))
