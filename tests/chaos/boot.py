"""Runs `anklet-supervisor` on an emulated host that can reboot: the harness changes the boot id in a file.

python boot.py BOOT_ID_FILE COMMAND ...
"""

import sys
from pathlib import Path

from anklet_supervisor import cli
from anklet_supervisor.daemon import host


def main():
    """Run the supervisor's command line with the boot id from the file, not from this machine's kernel."""
    host._BOOT_ID_FILE = Path(sys.argv[1])
    sys.exit(cli.main(sys.argv[2:]))


if __name__ == "__main__":
    main()
