"""`python -m anklet_supervisor` is the `anklet-supervisor` command."""

import sys

from anklet_supervisor.cli import main

if __name__ == "__main__":
    sys.exit(main())
