"""`python -m anklet_worker`: one worker process, as the supervisor starts it. Not for people."""

import sys

from anklet_worker.lean import import_lean

if __name__ == "__main__":
    import_lean()

    from anklet_worker.main import main

    main(sys.argv[1:])
