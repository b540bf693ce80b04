"""The direction of imports: which package, folder and file may import what."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]

#: package -> our packages that it may import.
ALLOWED = {
    "anklet_worker": {"anklet_worker"},
    "anklet_supervisor": {"anklet_supervisor", "anklet_worker"},
    "anklet_github": {"anklet_github", "anklet_worker"},
}
#: external module -> the only files that may import it.
ONLY_IN = {
    "subprocess": {"process/command.py", "daemon/process.py"},
    "redis": {"redis_store.py"},
    "sqlite3": {"store/embedded.py"},
    "mmap": {"slots.py"},
    "prometheus_client": {"metrics.py", "exposition.py", "metrics_http.py"},
    "setproctitle": {"main.py"},
    "rich": {"console/drawing.py", "status_view.py", "doctor/view.py", "log_view.py", "job_view.py"},
    "plistlib": {"launchd/agent.py", "doctor/facts.py"},
}
#: Files that decide and must not act.
PURE = {
    "machine/step.py",
    "machine/orders.py",
    "machine/workers.py",
    "machine/slots.py",
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
    "life/attempt_phases.py",
    "life/vm_phases.py",
    "contract/backoff.py",
    "anklet_github/pace.py",
    "anklet_github/evidence.py",
    "anklet_github/decisions.py",
    "anklet_github/verdict.py",
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
    """Our package that contains the file."""
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


#: The rooms of each package, lowest first. A room imports only rooms before it. A module at the top of a package is a
#: room too.
ROOMS = {
    "anklet_worker": (
        "__init__",
        "contract",
        "files",
        "state_layout",
        "process",
        "log",
        "link",
        "store",
        "vm",
        "life",
        "attempt",
        "plugins",
        "context",
        "loop",
        "main",
        "lean",
        "__main__",
    ),
    "anklet_supervisor": (
        "__init__",
        "config",
        "machine",
        "report",
        "log",
        "daemon",
        "launchd",
        "doctor",
        "console",
        "cli",
        "__main__",
    ),
}


def room(module):
    """The room of one of our modules, by its dotted name."""
    _, _, inside = module.partition(".")
    return inside.split(".")[0] or "__init__"


def modules_imported(path):
    """Dotted names of the modules of its own package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package(path):
            # `from package import name` imports a room, unless `name` is not a module.
            bare = "." not in node.module
            for name in node.names:
                exists = (ROOT / "src" / node.module / name.name).is_dir() or (
                    ROOT / "src" / node.module / f"{name.name}.py"
                ).is_file()
                yield f"{node.module}.{name.name}" if bare and exists else node.module


@pytest.mark.parametrize("path", files(lambda path: package(path) in ROOMS))
def test_a_room_imports_only_rooms_below_it(path):
    """Folders never import each other in a circle."""
    order = ROOMS[package(path)]
    mine = path.relative_to(ROOT / "src" / package(path)).with_suffix("").parts[0]
    for module in modules_imported(path):
        theirs = room(module)
        assert theirs == mine or order.index(theirs) < order.index(mine), f"{mine} imports {module}"


@pytest.mark.parametrize("path", files(lambda path: package(path) not in ROOMS))
def test_a_plugin_imports_the_contract_alone(path):
    """A plugin uses nothing that a third-party plugin could not use."""
    ours = {name for name in imports(path) if name.split(".")[0] in ROOMS}
    assert all(name.startswith("anklet_worker.contract") for name in ours)


def test_the_example_plugin_imports_the_contract_alone():
    """Authors of plugins copy the example."""
    ours = {name for name in imports(ROOT / "docs/examples/spool/plugin.py") if name.startswith("anklet")}
    assert ours
    assert all(name.startswith("anklet_worker.contract") for name in ours)


@pytest.mark.parametrize("path", files())
def test_every_module_says_what_it_owns(path):
    """Each file begins with a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_table_covers_every_file():
    """A new package must be entered in the table."""
    assert SOURCES
    assert all(any(part in ALLOWED for part in path.parts) for path in SOURCES)


PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_page_names_files_that_exist():
    """A reader who follows it meets no dead end."""
    named = set(re.findall(r"`([a-z_/]+\.py)`", PAGE))
    there = {path.relative_to(ROOT).as_posix() for path in (*SOURCES, *(ROOT / "tests").rglob("*.py"))}
    assert named
    assert [name for name in named if not any(path == name or path.endswith(f"/{name}") for path in there)] == []


@pytest.mark.parametrize("name", ROOMS)
def test_the_page_lists_the_rooms_in_their_order(name):
    """The tables of the page are the import table."""
    table = PAGE.partition(f"| `{name}` | owns |")[2].partition("\n\n")[0]
    listed = [room.rstrip("/").removesuffix(".py") for row in table.splitlines() for room in _rooms_of(row)]
    assert listed == [room for room in ROOMS[name] if not room.startswith("__")]


def _rooms_of(row):
    """The rooms in the first cell of a row."""
    return re.findall(r"`([a-z_]+(?:/|\.py))`", row.split("|")[1]) if row.count("|") > 2 else []
