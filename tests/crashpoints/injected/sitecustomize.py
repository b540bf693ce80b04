"""Loaded by every Python that has this folder on PYTHONPATH; acts in the supervisor and in its workers only, and only on a plan.

The program itself holds nothing for tests: a process is killed at an effect by wrapping that effect in this process.
"""

import json
import os
import sys
from pathlib import Path

_plan = os.environ.get("CRASH_PLAN")
_is_worker = "anklet_worker" in sys.orig_argv
if _plan and (_is_worker or ("anklet_supervisor" in sys.orig_argv and "start" in sys.orig_argv)):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import seams

    seams.install(json.loads(_plan), seams.WORKER if _is_worker else seams.SUPERVISOR)
