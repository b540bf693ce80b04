"""`python -m anklet_supervisor` is the `anklet-supervisor` command."""

import sys

from anklet_worker.lean import import_lean

if __name__ == "__main__":
    import_lean()

    from anklet_supervisor.cli import main

    sys.exit(main())
