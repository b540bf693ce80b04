"""The documentation says what the program does: generated parts are the code's, and each example is one that the program takes.

`python tests/unit/test_docs.py` writes the generated parts anew.
"""

import argparse
import os
import re
import shlex
import sys
from pathlib import Path

import msgspec
import pytest
import yaml
from anklet_github.rules import RULES

from anklet_supervisor.cli import command_line, parser
from anklet_supervisor.config import moved as config_moved
from anklet_supervisor.config.load import load
from anklet_supervisor.console import job_commands
from anklet_supervisor.doctor import doctor
from anklet_supervisor.machine import allocator
from anklet_supervisor.machine.model import JobView
from anklet_supervisor.machine.state import ServiceState
from anklet_supervisor.machine.step import initial
from anklet_supervisor.report.status import ApiBudget, document
from anklet_supervisor.report.timelines import STEPS, Timeline
from anklet_worker.contract.findings import Finding, Verdict
from anklet_worker.link.messages import Status
from anklet_worker.link.slots import SlotState
from anklet_worker.vm.names import parse_vm_name

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), ROOT / "plugins" / "github" / "README.md"]
START = 1_790_000_000.0
VM = "anklet-vm-420afdf6-8bccc7-31400000001-1"
URL = "https://github.com/my-team/my-app/actions/runs/9100000001/job/31400000001"


# ---- what is generated ----


def subcommands():
    """The parser of each command, by its name."""
    (choices,) = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return choices.choices


def commands_page():
    """docs/commands.md: every command with every option, then the JSON documents that scripts rely on."""
    lines = [
        "# Commands",
        "",
        "Generated from the program's own parser by `python tests/unit/test_docs.py`; `anklet-supervisor COMMAND --help` shows",
        "the same. The [README](../README.md#day-to-day) lists exit codes and signals. `python -m anklet_supervisor` runs the",
        "same program.",
        "",
        "`anklet-supervisor -s drain|stop` and `-version` are the original's spelling of `drain`, `stop` and `--version`.",
    ]
    for name, sub in subcommands().items():
        actions = [action for action in sub._actions if not isinstance(action, argparse._HelpAction)]
        lines += ["", f"## {name}", "", f"{sub.description[0].upper()}{sub.description[1:]}.", ""]
        lines += ["```", usage(name, actions), "```", "", "| | |", "|---|---|"]
        lines += ["| `{}` | {} |".format(spelling(action).replace("|", "\\|"), meaning(action)) for action in actions]
    lines += ["", "# JSON for scripts", ""]
    lines += [
        "New keys may appear; these keep their names and meanings. Times are RFC 3339 in `status`, Unix seconds in `job`."
    ]
    for title, text in documents().items():
        lines += ["", f"## {title}", "", "```json", text.strip(), "```"]
    return "\n".join(lines) + "\n"


def usage(name, actions):
    """One line: what must be given bare, what need not be in brackets."""
    words = [spelling(action) for action in actions]
    optional = [bool(action.option_strings) or action.nargs == "?" for action in actions]
    shown = (f"[{word}]" if may else word for word, may in zip(words, optional, strict=True))
    return " ".join(["anklet-supervisor", name, *shown])


def spelling(action):
    """How an argument is written."""
    value = "|".join(map(str, action.choices)) if action.choices else action.metavar or action.dest.upper()
    if not action.option_strings:
        return value
    name = action.option_strings[-1]
    return name if action.nargs == 0 else f"{name} {value}"


def meaning(action):
    """The help of an argument, with its short form if it has one."""
    short = [word for word in action.option_strings if not word.startswith("--")]
    return action.help + (f" (also `{short[0]}`)" if short else "")


def documents():
    """One of each of the documents, with everything in it."""
    line = Timeline(
        job_id="31400000001", job_name="build", job_url=URL, service="RUNNER1", vm=VM,
        steps={step: START + 2.5 * number for number, step in enumerate(STEPS)}, ended="success",
    )  # fmt: skip
    failed = msgspec.structs.replace(line, job_id="31400000000", ended="given back", reason="no space left on the disk")
    model = initial(["RUNNER1"], allocator.build(2, 1, [], START), once=False, drain_timeout=None)
    job = JobView(id=line.job_id, url=URL, name="build", vm=VM, since=START + 60)
    service = msgspec.structs.replace(
        model.services["RUNNER1"], state=ServiceState.READY, status=Status.RUNNING, pid=502, job=job
    )
    table = model.allocation.table
    taken = msgspec.structs.replace(
        table.slots[0], state=SlotState.OCCUPIED, service="RUNNER1", vm=VM, since=START + 61
    )
    table = msgspec.structs.replace(table, slots=(taken, *table.slots[1:]))
    model = msgspec.structs.replace(
        model,
        services={"RUNNER1": service},
        allocation=msgspec.structs.replace(model.allocation, table=table),
    )
    budget = ApiBudget(remaining=4321, limit=5000, reset="2026-09-21T15:00:00.000Z")
    status = document(model, {"RUNNER1": "github"}, START, [failed], {"RUNNER1": budget})
    status = msgspec.structs.replace(status, pid=501)
    finding = Finding(
        check="sleep",
        verdict=Verdict.WARNING,
        said="this Mac sleeps after 10 minutes; the supervisor keeps it awake only while it runs",
        remedy="sudo pmset -c sleep 0 disksleep 0",
    )
    return {
        "status --json": msgspec.json.format(msgspec.json.encode(status), indent=2).decode(),
        "job show ID --json": job_commands.document([line]),
        "doctor --json": doctor.as_json([finding]),
    }


def migration_page():
    """docs/migration.md with its table made anew."""
    text = (DOCS / "migration.md").read_text()
    table = f"<!-- moved -->\n\n{config_moved.markdown(RULES.settings.moved)}"
    return re.sub(r"<!-- moved -->\n(?:\n(?:\|.*\n)+)?", lambda _: table, text)


GENERATED = {"commands.md": commands_page, "migration.md": migration_page}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_parts_are_up_to_date(name):
    """A command, an option or a key cannot change without its page."""
    assert (DOCS / name).read_text() == GENERATED[name](), "run: python tests/unit/test_docs.py"


def test_every_option_says_what_it_does():
    """In a few words; those that choose say among what."""
    for name, sub in subcommands().items():
        for action in sub._actions:
            assert action.help, f"{name} {action.dest}"


def test_the_readmes_table_has_every_command():
    """One row each, or with others of its kind."""
    rows = re.findall(r"^\| `anklet-supervisor (?:\[?)([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(subcommands()) <= set(rows)


# ---- every example ----


def blocks(language):
    """Every fenced block of a language: the page's name, and its text without the indentation of a list."""
    for page in PAGES:
        for indent, text in re.findall(
            rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL
        ):
            yield pytest.param(re.sub(rf"^{indent}", "", text, flags=re.MULTILINE), id=f"{page.name}-{text.split()[1]}")


def command_lines():
    """Every `$ ...` line, and every command in the text, that calls the program."""
    for page in PAGES:
        text = page.read_text()
        found = re.findall(r"^ *\$ (.*)$", text, re.MULTILINE) + re.findall(
            r"`([^`\n]*anklet-supervisor [^`\n]*)`", text
        )
        for line in dict.fromkeys(found):
            if page.name != "commands.md" and re.search(r"(^|[ /])anklet-supervisor( |$)", line):
                yield pytest.param(line, id=f"{page.name}-{line}")


@pytest.mark.parametrize("line", list(command_lines()))
def test_every_command_in_the_documentation_is_one(line):
    """The program's own parser takes it; `NAME`, `ID` and the like stand for something."""
    words = shlex.split(line.partition("#")[0].replace("\\|", "|"))
    at = next(index for index, word in enumerate(words) if word.rpartition("/")[2] == "anklet-supervisor")
    if at and words[at - 1] in ("install", "upgrade", "uninstall"):
        return  # the package is meant, not the command
    end = next((index for index in range(at, len(words)) if words[index] in ("|", "<", ">", "&&")), len(words))
    mine = words[at + 1 : end]
    # What a synopsis says: [optional] parts, one|of|several.
    mine = [word.strip("[]").partition("|")[0] for word in mine]
    mine = [
        "1" if word == "DURATION" else word
        for word in mine
        if word not in ("COMMAND", "--help", "--version", "-version")
    ]
    if mine:
        command_line(mine)


def looks_like_a_workflow(document):
    """True for a workflow of GitHub's."""
    return "jobs" in document


@pytest.mark.parametrize("text", list(blocks("yaml")))
def test_every_configuration_in_the_documentation_is_valid(text, tmp_path):
    """And every workflow asks for a VM by labels."""
    document = yaml.safe_load(text)
    if looks_like_a_workflow(document):
        for job in document["jobs"].values():
            assert {"self-hosted", "anka"} <= set(job["runs-on"])
            assert sum(label.startswith("anka-template:") for label in job["runs-on"]) == 1
        return
    folder = tmp_path / ".config" / "anklet"
    folder.mkdir(parents=True)
    (folder / "token").write_text("github_pat_bait\n")
    (folder / "token").chmod(0o600)
    (folder / "config.yml").write_text(text)
    config, warnings = load(folder / "config.yml", {}, home=tmp_path, platform="darwin", is_dir=lambda _: True)
    assert config.services
    assert warnings == ()


def test_names_of_vms_in_the_documentation_are_ours():
    """They are what the program makes."""
    assert parse_vm_name(VM) is not None


def test_links_between_pages_lead_to_headings():
    """`page.md#heading` and `#heading` are there."""
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            text = ((page.parent / target) if target else page).read_text()
            headings = {slug(line) for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
            assert anchor in headings, f"{page.name}: {target}#{anchor}"


def slug(heading):
    """A heading as GitHub names it in links."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_page_is_linked_from_the_readme():
    """A reader finds it."""
    text = (ROOT / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert f"(docs/{page.name}" in text, page.name


SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]


def test_every_file_and_every_name_in_it_exists():
    """`name` in `file.py`: a reader with the page in hand finds it. Doc strings name files too."""
    for page in PAGES:
        text = page.read_text()
        for names, file in re.findall(r"((?:`[\w.]+`, )*`[\w.]+`) in `([\w/]+\.py)`", text):
            code = "".join(path.read_text() for path in SOURCES if path.as_posix().endswith(f"/{file}"))
            for name in re.findall(r"`(?:\w+\.)*(\w+)`", names):
                assert re.search(rf"\b{name}\b", code), f"{page.name}: {name} in {file}"
    known = [path.as_posix() for path in [*SOURCES, *DOCS.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]]
    for page in [*PAGES, *SOURCES]:
        for file in re.findall(r"`([a-z_/]+\.py)`", page.read_text()):
            assert any(path.endswith(f"/{file}") for path in known), f"{page.relative_to(ROOT)}: {file}"


if __name__ == "__main__":
    os.environ.pop("COLUMNS", None)
    for file, content in GENERATED.items():
        (DOCS / file).write_text(content())
    sys.exit(0)
