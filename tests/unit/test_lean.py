"""Modules that an idle worker does without."""

import subprocess
import sys


def run(code):
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_worker_loads_none_of_them():
    """Everything that an idle worker imports, with the github plugin."""
    code = """
from anklet_worker.lean import import_lean
import_lean()
import sys
import anklet_worker.main, anklet_worker.vm.anka.driver, anklet_worker.store.embedded, anklet_github.plugin
heavy = ("multiprocessing", "importlib.metadata", "email", "urllib3", "tarfile", "rich", "redis", "jwt", "argparse", "ssl",
         "typing_extensions", "_hashlib", "inspect", "dataclasses", "pythonjsonlogger", "anklet_supervisor")
print(*(name for name in heavy if name in sys.modules))
"""
    assert run(code) == []


def test_a_library_finds_them_as_usual_later():
    """Only those that ask first do without: digests are the same, and the hidden modules can be imported."""
    code = """
from anklet_worker.lean import import_lean
import_lean()
import hashlib, hmac
print(hashlib.sha256(b"").hexdigest()[:8], hmac.new(b"k", b"m", "sha256").hexdigest()[:8])
import _hashlib, typing_extensions
print(hasattr(_hashlib, "scrypt"), typing_extensions.__name__)
"""
    assert run(code) == ["e3b0c442", "b60090e3", "True", "typing_extensions"]


def test_what_is_loaded_stays_as_it_is():
    """A program that has loaded the full modules keeps them."""
    code = """
import hashlib, msgspec
from anklet_worker.lean import import_lean
import_lean()
import sys
print("_hashlib" in sys.modules, hasattr(hashlib, "scrypt"))
"""
    assert run(code) == ["True", "True"]
