"""The direction of imports: supervisor -> worker, plugins -> worker, and who alone may import what."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]

#: package -> packages of ours that it may import.
ALLOWED = {
    "anklet_worker": {"anklet_worker"},
    "anklet_supervisor": {"anklet_supervisor", "anklet_worker"},
    "anklet_github": {"anklet_github", "anklet_worker"},
}
#: module of others -> the only files that may import it.
ONLY_IN = {
    "subprocess": {"process/command.py", "daemon/process.py"},
    "redis": {"redis_store.py"},
    "sqlite3": {"store/store.py"},
    "mmap": {"slots.py"},
    "prometheus_client": {"metrics.py", "exposition.py", "metrics_http.py"},
    "setproctitle": {"main.py"},
    "rich": {"status_view.py", "doctor/view.py", "log_view.py", "job_view.py"},
    "plistlib": {"launchd/agent.py", "doctor/facts.py"},
}
#: files that decide and must not act -> modules that would let them.
PURE = {
    "machine/step.py",
    "machine/state.py",
    "machine/allocator.py",
    "machine/restarts.py",
    "machine/model.py",
    "machine/events.py",
    "machine/reload.py",
    "machine/turn.py",
    "machine/host_limit.py",
    "daemon/clock.py",
    "report/tally.py",
    "report/timelines.py",
    "contract/job.py",
    "attempt/phases.py",
    "anklet_worker/backoff.py",
}
IMPURE = {
    "os",
    "signal",
    "time",
    "logging",
    "multiprocessing",
    "threading",
    "subprocess",
    "socket",
    "random",
    "pathlib",
}


def imports(path):
    """Names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


def package(path):
    """The package of ours that a file belongs to."""
    return next(part for part in path.parts if part in ALLOWED)


def files(wanted=lambda _: True):
    """Test parameters: one for each source file."""
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in SOURCES if wanted(path)]


@pytest.mark.parametrize("path", files())
def test_imports_go_one_way(path):
    """No package imports one that it must not know."""
    ours = {name.split(".")[0] for name in imports(path)} & set(ALLOWED)
    assert ours <= ALLOWED[package(path)]


@pytest.mark.parametrize("path", files())
def test_guarded_modules_have_one_importer(path):
    """Dangerous or heavy modules are imported only where they are owned."""
    for name in {name.split(".")[0] for name in imports(path)} & set(ONLY_IN):
        assert any(path.as_posix().endswith(allowed) for allowed in ONLY_IN[name]), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", files(lambda path: path.as_posix().endswith(tuple(PURE))))
def test_deciding_modules_cannot_act(path):
    """A file that decides has no clock, no process, no signal, no log."""
    assert not {name.split(".")[0] for name in imports(path)} & IMPURE


@pytest.mark.parametrize("path", files())
def test_every_module_says_what_it_owns(path):
    """Each file begins with a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_table_covers_every_file():
    """A new package must be entered in the table."""
    assert SOURCES
    assert all(any(part in ALLOWED for part in path.parts) for path in SOURCES)
