"""`logs`: shows the lines of the log file that match, and new ones as they come.

Owns the command. `log.reader` finds the lines, `log_view` draws them.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from anklet_supervisor.config.load import load_host
from anklet_supervisor.console.log_view import LineWriter
from anklet_supervisor.log.reader import LineFilter, Tail, last_lines, parsed
from anklet_supervisor.log.writer import log_file
from anklet_worker.contract.errors import ConfigError, ExitCode

#: Seconds between two reads of `logs --follow`.
_PAUSE = 0.2


def show(config: Path, wanted: LineFilter, *, lines: int, follow: bool) -> int:
    """Print the last `lines` lines that match, and with `follow` new ones until Ctrl-C. Raises `ConfigError`."""
    host = load_host(config, os.environ, home=Path.home(), platform=sys.platform)
    if host.log.file_dir is None:
        raise ConfigError(f"the log goes to standard output; set log.file_dir in {config} to write it to a file")
    path = log_file(host.log.file_dir)
    if not path.exists() and not follow:
        raise ConfigError(f"{path} does not exist: no supervisor has written it yet")
    writer = LineWriter()
    tail = Tail(path)
    shown = last_lines(path, tail.read(), wanted, lines)
    for line in shown:
        writer.write(line, parsed(line))
    if not shown and not follow and lines:
        sys.stderr.write(f"no matching line in {path}\n")
    try:
        while follow:
            for line in tail.read():
                if wanted.matches_line(line):
                    writer.write(line, parsed(line))
            time.sleep(_PAUSE)
    except KeyboardInterrupt:
        pass
    return int(ExitCode.OK)
