"""The emulated GitHub as a program: python3 tests/emulators/github/server.py --port 0 --port-file FILE.

Owns the command line, the life of the process, and the two threads besides those of connections: the clock for silent
runners, and the watch on standard input that ends the server when its starter ends.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from emulators.github.engine import runners
from emulators.github.engine.control_api import ControlApi
from emulators.github.engine.faults import Faults
from emulators.github.engine.request_log import RequestLog
from emulators.github.engine.transport import Handler, Hub, Server
from emulators.github.engine.world import World

_LONGEST_NAP = 1.0


def _arguments(argv):
    parser = argparse.ArgumentParser(description="An emulated GitHub: REST API, runner service, release downloads.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 (default) takes a free one")
    parser.add_argument("--port-file", help="write the port there, once it is open")
    parser.add_argument("--public-host", help="name by which guests reach this server (default: the address)")
    parser.add_argument("--state-dir", help="write events.jsonl and anomalies.jsonl there")
    parser.add_argument("--log", help="write a JSON line per API request there")
    parser.add_argument("--until-eof", action="store_true", help="exit when standard input ends")
    parser.add_argument("--scratch", help="with --until-eof: also remove this directory then")
    return parser.parse_args(argv)


def _watch_runners(world):
    with world.changed:
        while True:
            world.changed.wait(min(runners.sweep(world), _LONGEST_NAP))


def _watch_stdin(stop, scratch):
    while sys.stdin.buffer.read(4096):
        continue
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    stop()


def _write_whole(path, text):
    """Write so that a reader sees the whole file or none."""
    aside = Path(f"{path}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)


def main(argv=None):
    """Serve until SIGTERM, SIGINT or, if asked, the end of standard input. Returns the exit status."""
    arguments = _arguments(argv)
    if arguments.state_dir:
        Path(arguments.state_dir).mkdir(parents=True, exist_ok=True)
    world, faults, log = World(arguments.state_dir), Faults(), RequestLog(arguments.log)
    server = Server((arguments.host, arguments.port), Handler)
    port = server.server_address[1]
    root = f"http://{arguments.public_host or arguments.host}:{port}"
    server.hub = Hub(world, faults, log, ControlApi(world, faults, log, root), root)

    def stop(*_):
        # shutdown() waits for the loop that this very thread may be running.
        threading.Thread(target=server.shutdown, daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    threading.Thread(target=_watch_runners, args=(world,), daemon=True).start()
    if arguments.until_eof:
        threading.Thread(target=_watch_stdin, args=(stop, arguments.scratch), daemon=True).start()
    if arguments.port_file:
        _write_whole(arguments.port_file, f"{port}\n")
    else:
        print(root, flush=True)  # noqa: T201  a program's output
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # connection threads may be waiting in a poll
