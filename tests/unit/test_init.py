"""`init`: its questions, the files that it writes, and that it replaces nothing."""

import stat
from pathlib import Path

import msgspec
import pytest

from anklet_supervisor.config.load import load
from anklet_supervisor.console.init import Answers, Terminal, ask_for_missing, render, write
from anklet_worker.contract.errors import ConfigError, UsageError
from anklet_worker.contract.settings import Secret

TOKEN = "github_pat_bait_123"
ANSWERS = Answers(owner="acme", repo="app", token=TOKEN, plugin="github")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A separate home for each test."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RUNNER1_OWNER", "LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def path(home):
    """The usual path, in a folder that does not exist yet."""
    return home / ".config" / "anklet" / "config.yml"


def never(*_):
    """Fail, because the test allows no question."""
    raise AssertionError("asked")


def person(**said):
    """A user at a terminal. Each answer is named after a word in its question."""
    asked = []

    def answer(question):
        asked.append(question)
        return next(text for word, text in said.items() if word in question)

    return Terminal(answer, answer, never, interactive=True), asked


def test_what_is_written_loads_without_a_warning(path):
    """The configuration has two services with the token from its file, and both files are private."""
    done = write(path, ANSWERS)
    config, warnings = load(path, {}, home=Path.home(), platform="linux")
    assert warnings == ()
    assert [(one.name, one.owner, one.repo, one.settings["token"]) for one in config.services] == [
        ("RUNNER1", "acme", "app", Secret(TOKEN)),
        ("RUNNER2", "acme", "app", Secret(TOKEN)),
    ]
    for file in (path, path.parent / "token"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["config.yml", "token"]
    assert TOKEN not in path.read_text()
    assert not any(TOKEN in line for line in done)
    assert done[-1] == "next: anklet-supervisor doctor"


def test_the_file_explains_itself():
    """Each section has a comment above it."""
    lines = render(ANSWERS, "token").splitlines()
    for key in ("vm_limit", "vm_driver", "services", "    token_file", "    sleep_interval", "  port"):
        (at,) = [number for number, line in enumerate(lines) if line.startswith(f"{key}:")][:1]
        assert lines[at - 1].lstrip().startswith("#"), key


@pytest.mark.parametrize(
    "changes",
    [
        {"services": 1, "registry_url": "http://anka:8089"},
        {"api_url": "https://ghe.example.com/api/v3", "vm_driver": "tart"},
        {"owner": "a.b-c_d"},
    ],
)
def test_every_answer_is_in_the_configuration(path, changes):
    """Each answer appears in the configuration unchanged."""
    write(path, msgspec.structs.replace(ANSWERS, **changes))
    config, _ = load(path, {}, home=Path.home(), platform="linux")
    for key, value in changes.items():
        service = config.services[0]
        found = len(config.services) if key == "services" else service.settings.get(key, getattr(service, key, None))
        assert found == value


@pytest.mark.parametrize(
    ("platform", "place"),
    [("darwin", "Library/Logs"), ("linux", ".local/state/anklet-supervisor/log")],
)
def test_the_log_goes_where_a_user_looks_for_it(path, home, monkeypatch, platform, place):
    """The log directory is created, so that `logs` works from the first start."""
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    write(path, ANSWERS)
    assert load(path, {}, home=home, platform=platform)[0].log.file_dir == home / place
    assert (home / place).is_dir()
    assert stat.S_IMODE((home / place).parent.stat().st_mode) == 0o700  # on Linux this is state_dir


def test_a_log_directory_that_was_named_is_used_and_made(path, home):
    """If the log directory cannot be created, the error says so, and nothing is written."""
    write(path, msgspec.structs.replace(ANSWERS, log_dir=home / "logs"))
    assert load(path, {}, home=home, platform="linux")[0].log.file_dir == home / "logs"
    assert (home / "logs").is_dir()
    (home / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot create the log directory .*file/x: "):
        write(home / "other" / "c.yml", msgspec.structs.replace(ANSWERS, log_dir=home / "file" / "x"))
    assert list((home / "other").iterdir()) == []


def test_an_enterprise_servers_two_addresses_go_together(path):
    """server_url follows from api_url; github.com's addresses are the defaults."""
    write(path, msgspec.structs.replace(ANSWERS, api_url="https://ghe.example.com/api/v3"))
    assert (
        load(path, {}, home=Path.home(), platform="linux")[0].services[0].settings["server_url"]
        == "https://ghe.example.com"
    )
    assert "server_url" not in render(ANSWERS, "token")


def test_a_configuration_elsewhere_is_named_in_what_comes_next(home):
    """The line with the next command can be copied as it is."""
    place = home / "my configs" / "a.yml"
    assert write(place, ANSWERS)[-1] == f"next: anklet-supervisor doctor --config '{place}'"


def test_a_token_that_has_a_file_stays_there(path, home):
    """The configuration names the existing token file instead of a copy."""
    (home / "secret").write_text(TOKEN + "\n")
    (home / "secret").chmod(0o600)
    write(path, msgspec.structs.replace(ANSWERS, token="", token_file=home / "secret"))
    assert [entry.name for entry in path.parent.iterdir()] == ["config.yml"]
    assert load(path, {}, home=home, platform="linux")[0].services[0].settings["token"] == Secret(TOKEN)


@pytest.mark.parametrize("which", ["config.yml", "token"])
def test_nothing_is_ever_replaced(path, which):
    """If either file exists, both stay as they are."""
    path.parent.mkdir(parents=True)
    (path.parent / which).write_text("mine")
    with pytest.raises(ConfigError, match="overwrites nothing"):
        write(path, ANSWERS)
    assert [(entry.name, entry.read_text()) for entry in path.parent.iterdir()] == [(which, "mine")]


def test_a_dangling_link_is_not_written_through(path, home):
    """A user made the link on purpose, so it is not replaced."""
    path.parent.mkdir(parents=True)
    path.symlink_to(home / "elsewhere")
    with pytest.raises(ConfigError, match="overwrites nothing"):
        write(path, ANSWERS)
    assert not (home / "elsewhere").exists()


@pytest.mark.parametrize("changes", [{"owner": "no good"}, {"registry_url": "nonsense"}, {"plugin": "nosuch"}])
def test_answers_that_make_no_configuration_leave_nothing(path, changes):
    """The error names the key but none of our temporary files."""
    with pytest.raises(ConfigError, match="these answers:") as error:
        write(path, msgspec.structs.replace(ANSWERS, **changes))
    assert next(iter(changes)) in str(error.value)
    assert ".init-" not in str(error.value)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("changes", [{"token": "\udcff\udcfe"}, {"owner": "caf\udce9"}])
def test_answers_that_are_no_text_leave_nothing(path, changes):
    """An example is a token that an editor saved as UTF-16."""
    with pytest.raises(ConfigError, match="not valid UTF-8"):
        write(path, msgspec.structs.replace(ANSWERS, **changes))
    assert list(path.parent.iterdir()) == []


def test_a_dollar_brace_is_text(path):
    """`${...}` in an answer does not name an environment variable."""
    text = render(msgspec.structs.replace(ANSWERS, log_dir=Path("/a${HOME}b")), "token")
    assert '"/a$${HOME}b"' in text


def test_a_folder_that_cannot_be_written_is_told(home):
    """The error is one line with the reason."""
    (home / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot create .*file: File exists"):
        write(home / "file" / "config.yml", ANSWERS)


# ---- asking ----


def test_a_person_is_asked_for_what_is_missing(path):
    """The token is typed unseen. There is no question for a given value, nor for the plugin if there is only one."""
    terminal, asked = person(Repository="app", token=TOKEN)
    answers = ask_for_missing(Answers(owner="given"), path, terminal)
    assert (answers.owner, answers.repo, answers.token, answers.plugin) == ("given", "app", TOKEN, "github")
    assert len(asked) == 2


def test_standard_input_gives_the_token_where_nobody_is(path):
    """Without a terminal, the token is the first line of standard input."""
    terminal = Terminal(never, never, lambda: f"{TOKEN}\nmore\n", interactive=False)
    assert ask_for_missing(Answers(owner="o", repo="r"), path, terminal).token == TOKEN


@pytest.mark.parametrize(("answers", "option"), [(Answers(), "--owner"), (Answers(owner="o"), "--repo")])
def test_what_nobody_can_be_asked_for_is_named(path, answers, option):
    """The error names the option that would supply the value."""
    with pytest.raises(UsageError, match=f"{option} is missing, and init can only ask at a terminal"):
        ask_for_missing(answers, path, Terminal(never, never, never, interactive=False))


def test_an_empty_token_is_none(path):
    """An empty token is refused, from a user and from standard input."""
    for terminal in (person(token=" ")[0], Terminal(never, never, lambda: "\n", interactive=False)):
        with pytest.raises(UsageError, match="a token is missing"):
            ask_for_missing(Answers(owner="o", repo="r"), path, terminal)


def test_a_person_who_leaves_is_not_written_for(path):
    """Ctrl-D is not an answer."""

    def gone(_):
        raise EOFError

    with pytest.raises(UsageError, match="--owner is missing"):
        ask_for_missing(Answers(), path, Terminal(gone, gone, never, interactive=True))


def test_nobody_is_asked_for_what_cannot_be_written(path):
    """If a configuration exists, `init` reports it before the first question."""
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(ConfigError, match="exists"):
        ask_for_missing(Answers(), path, Terminal(never, never, never, interactive=True))
