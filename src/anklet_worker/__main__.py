"""`python -m anklet_worker`: one worker process, as the supervisor starts it. Not for people."""

import sys

from anklet_worker.main import main

if __name__ == "__main__":
    main(sys.argv[1:])
