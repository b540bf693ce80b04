"""Modules that an idle process does not load: they are there as soon as something in them is used."""

import subprocess
import sys
import threading

import pytest

from anklet_worker import lean


def run(code):
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_worker_loads_none_of_them():
    """Everything that an idle worker imports; the github plugin, too."""
    code = """
from anklet_worker.lean import import_lean, _AT_FIRST_USE, _Postponed
import_lean()
import sys
import anklet_worker.main, anklet_worker.vm.anka.driver, anklet_github.plugin
# Python 3.11.2 uses something of `shutil` while it imports `tempfile`; 3.11.7 does not.
postponed = set(_AT_FIRST_USE) - {"shutil"}
print(*(name for name in postponed if not isinstance(sys.modules[name], _Postponed)))
heavy = ("multiprocessing", "importlib.metadata", "email", "urllib3", "tarfile", "rich", "redis", "jwt", "argparse",
         "typing_extensions", "_hashlib", "anklet_supervisor")
print(*(name for name in heavy if name in sys.modules))
"""
    assert run(code) == []


def test_they_work_at_first_use():
    """By attribute and by `from`, and what needs them."""
    code = """
from anklet_worker.lean import import_lean
import_lean()
import dataclasses, inspect
from shutil import which
@dataclasses.dataclass
class Point:
    x: int
print(inspect.isclass(Point), which("sh") is not None, Point.__doc__, type(inspect).__name__)
import hashlib
print(hashlib.sha256(b"").hexdigest()[:8])
"""
    assert run(code) == ["True", "True", "Point(x:", "int)", "module", "e3b0c442"]


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("from inspect import *; print(isclass(int))", "True"),
        ("import ipaddress; print(ipaddress.__version__)", "1.0"),
        ("import secrets; print('token_hex' in dir(secrets))", "True"),
    ],
)
def test_a_star_and_the_names_of_a_module_are_uses(code, printed):
    """A plugin, or a library of its own, may ask for them first."""
    assert run(f"from anklet_worker.lean import import_lean; import_lean(); {code}") == [printed]


def test_a_bug_is_reported_although_python_s_files_are_gone():
    """`brew upgrade` removes the folder of the Python that runs us. The worker's log must still say what happened."""
    code = """
from anklet_worker.lean import import_lean, _AT_FIRST_USE
import_lean()
import sys
from anklet_worker.log.service_log import open_log
for name in _AT_FIRST_USE:
    sys.modules[name].__spec__.loader.path = "/gone"
lines = []
log = open_log(lines.append, "DEBUG", (), {})
try:
    1 / 0
except ZeroDivisionError:
    log.exception("bug")
print(len(lines), b"ZeroDivisionError" in lines[0])
"""
    assert run(code) == ["1", "True"]


@pytest.fixture
def slow_module(tmp_path, monkeypatch):
    """A module whose code takes a while."""
    (tmp_path / "slow_to_load.py").write_text("import time\nearly = 1\ntime.sleep(0.2)\nlate = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    lean._load_at_first_use("slow_to_load")
    yield sys.modules["slow_to_load"]
    del sys.modules["slow_to_load"]


def test_threads_see_it_whole(slow_module):
    """Several use it first at once."""
    found = []
    threads = [threading.Thread(target=lambda: found.append(slow_module.late)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2, 2, 2, 2]


def test_a_name_that_it_lacks_is_missed_as_ever(slow_module):
    """Before and after its code has run."""
    for _ in range(2):
        with pytest.raises(AttributeError):
            _ = slow_module.missing
