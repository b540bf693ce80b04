"""Loaded by every Python with this folder on PYTHONPATH. Acts only in the supervisor and its workers, and only if there is a plan.

The program contains no code for tests: this module wraps an effect in the process and kills it there.
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
