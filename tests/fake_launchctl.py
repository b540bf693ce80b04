"""A launchctl for tests: a program that keeps the loaded job in a folder, with the exit codes and texts of the real one.

From launchctl(1) and the output of macOS 14: `print` of a job that is not loaded exits with 113, `bootout` of it with 3, a
`bootout` whose job takes long to end with 36, a `bootstrap` of a job that is already loaded with 5.
"""

import json
import sys
from pathlib import Path

_PROGRAM = """#!{python}
import json, plistlib, sys
from pathlib import Path
folder = Path({folder!r})
loaded = folder / "loaded"
arguments = sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
def end(code, text="", out=""):
    sys.stdout.write(out); sys.stderr.write(text); sys.exit(code)
verb = arguments[0]
fault = folder / ("fault-" + verb)
if fault.exists():
    code, text = fault.read_text().split(" ", 1)
    end(int(code), text + "\\n")
if verb == "print":
    if not loaded.exists():
        end(113, "Bad request.\\nCould not find service in domain\\n")
    state = "not running" if (folder / "ended").exists() else "running"
    end(0, out="gui/501/x = {{\\n\\tactive count = 1\\n\\tstate = " + state + "\\n\\n\\tpid = 4711\\n\\truns = 2\\n"
        "\\tlast exit code = 0\\n\\tinner = {{\\n\\t\\tstate = active\\n\\t}}\\n}}\\n")
if verb == "bootstrap":
    if loaded.exists():
        end(5, "Bootstrap failed: 5: Input/output error\\n")
    content = Path(arguments[2]).read_bytes()
    plistlib.loads(content)
    loaded.write_bytes(content)
elif verb == "bootout":
    if not loaded.exists():
        end(3, "Boot-out failed: 3: No such process\\n")
    loaded.unlink()
elif verb == "kickstart":
    (folder / "ended").unlink(missing_ok=True)
elif verb != "enable":
    end(64, "Unrecognized subcommand: " + verb + "\\n")
"""


class FakeLaunchctl:
    """The fake program in a folder for PATH, and a record of its calls."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        program = folder / "launchctl"
        program.write_text(_PROGRAM.format(python=sys.executable, folder=str(folder)))
        program.chmod(0o755)

    @property
    def loaded(self):
        """The loaded property list, or None."""
        path = self.folder / "loaded"
        return path.read_bytes() if path.exists() else None

    def calls(self):
        """The arguments of each call."""
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def end(self):
        """Make the loaded job end on purpose; it stays down."""
        (self.folder / "ended").touch()

    def fail(self, verb, code, text):
        """Make this subcommand exit with this code and text from now on."""
        (self.folder / f"fault-{verb}").write_text(f"{code} {text}")
