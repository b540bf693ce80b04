"""`init`: writes a first configuration from the answers to a few questions: two private files; it overwrites nothing.

Owns the text of that configuration. `config` validates it before it is put in place. Must not know any plugin.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from anklet_supervisor.config.host_keys import HOST
from anklet_supervisor.config.load import ConfigErrors, default_state_dir, load
from anklet_supervisor.config.tables import default_of
from anklet_worker import plugins as plugin
from anklet_worker.contract.errors import ConfigError, UsageError
from anklet_worker.files import write_atomically

#: Characters read from standard input.
_LONGEST_TOKEN = 4096
#: The path of the REST API on every GitHub Enterprise Server.
_API_PATH = "/api/v3"


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """The answers that make the configuration; an empty text is no answer. `token` is the secret, when no file holds it yet."""

    owner: str = ""
    repo: str = ""
    token_file: Path | None = None
    token: str = ""
    plugin: str = ""
    services: int = 2
    vm_driver: str = "anka"
    registry_url: str = ""
    api_url: str = ""
    log_dir: Path | None = None


class Terminal(msgspec.Struct, frozen=True):
    """Where answers come from: `ask` echoes, `ask_secret` does not, `read` returns standard input to its end.

    `interactive`: standard input is a terminal.
    """

    ask: Callable[[str], str]
    ask_secret: Callable[[str], str]
    read: Callable[[], str]
    interactive: bool


def this_terminal() -> Terminal:
    """The standard input of this process."""
    return Terminal(input, getpass.getpass, lambda: sys.stdin.read(_LONGEST_TOKEN), sys.stdin.isatty())


def ask_for_missing(answers: Answers, path: Path, terminal: Terminal | None = None) -> Answers:
    """Ask for the answers that are missing.

    Raises `ConfigError` before it asks anything when `path` exists; `UsageError`, which names the option, for an answer that is
    missing when standard input is not a terminal.
    """
    _refuse_to_replace(path)
    where = this_terminal() if terminal is None else terminal
    asked = {
        "plugin": answers.plugin or _only_plugin(where),
        "owner": answers.owner or _ask(where, "--owner", "User or organization that owns the repository"),
        "repo": answers.repo or _ask(where, "--repo", "Repository"),
    }
    if answers.token_file is None and not answers.token:
        asked["token"] = _token(where)
    return msgspec.structs.replace(answers, **asked)


def _ask(where: Terminal, option: str, question: str) -> str:
    if not where.interactive:
        raise UsageError(f"{option} is missing, and init can only ask at a terminal")
    try:
        return where.ask(f"{question}: ").strip()
    except EOFError:
        raise UsageError(f"{option} is missing") from None


def _only_plugin(where: Terminal) -> str:
    known = sorted(plugin.names(Path.home() / ".config" / "anklet" / "plugins"))
    if len(known) == 1:
        return known[0]
    return _ask(where, "--plugin", f"Source of jobs ({', '.join(known)})")


def _token(where: Terminal) -> str:
    """The token, asked for without echo or read from standard input; never an argument, which other users can read."""
    try:
        text = where.ask_secret("Access token (not shown): ") if where.interactive else where.read()
    except EOFError:
        text = ""
    token = text.strip().partition("\n")[0].strip()
    if not token:
        raise UsageError("a token is missing: use --token-file FILE, or pass the token on standard input")
    return token


def write(path: Path, answers: Answers) -> list[str]:
    """Write the configuration, and the token's file unless the answers name one. Returns lines that say what was done.

    Raises `ConfigError` when a file exists or cannot be written, or when the answers make no valid configuration; then nothing
    is left behind.
    """
    path = path.absolute()
    token_file = path.parent / "token"
    _refuse_to_replace(path)
    if answers.token_file is None and (token_file.exists() or token_file.is_symlink()):
        raise ConfigError(f"{token_file} exists; init overwrites nothing (move it away, or use it with --token-file)")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create {path.parent}: {error.strerror}") from None
    try:
        # Write and check the files aside; os.link then takes the name only if it is free.
        aside = Path(tempfile.mkdtemp(prefix=".init-", dir=path.parent))
        try:
            return _write_aside(aside, path, token_file, answers)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except FileExistsError as error:
        raise ConfigError(f"{error.filename2 or error.filename} exists; nothing was changed") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    except UnicodeEncodeError:
        raise ConfigError("these answers or the token are not valid UTF-8") from None


def _write_aside(aside: Path, path: Path, token_file: Path, answers: Answers) -> list[str]:
    _make_log_dir(answers.log_dir or usual_log_dir())
    text = render(answers, "token" if answers.token_file is None else str(answers.token_file.absolute()))
    write_atomically(aside / path.name, text.encode())
    if answers.token_file is None:
        write_atomically(aside / "token", answers.token.encode() + b"\n")
    try:
        load(aside / path.name, _Without("ANKLET_"), home=Path.home(), platform=sys.platform)
    except ConfigErrors as error:
        raise ConfigError(str(error).replace(str(aside / path.name), "these answers")) from None
    done = [f"wrote {path} (services: {answers.services})", f"next: anklet-supervisor doctor{_named(path)}"]
    if answers.token_file is None:
        os.link(aside / "token", token_file)
        done.insert(0, f"wrote {token_file} (the token; only you can read it)")
    try:
        os.link(aside / path.name, path)
    except OSError:
        if answers.token_file is None:
            token_file.unlink(missing_ok=True)
        raise
    return done


def _make_log_dir(path: Path) -> None:
    """Create the log directory. Only init does: the supervisor refuses a missing one, which may be misspelt."""
    try:
        for folder in reversed((path, *path.parents)):
            # One by one, because `parents=True` applies the mode only to the last.
            if not folder.is_dir():
                folder.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(f"cannot create the log directory {path}: {error.strerror}") from None


def _named(path: Path) -> str:
    """The option that names this configuration to other commands; empty for the default place."""
    usual = Path.home() / ".config" / "anklet" / "config.yml"
    return (
        "" if path == usual or os.environ.get("ANKLET_CONFIG") == str(path) else f" --config {shlex.quote(str(path))}"
    )


def usual_log_dir() -> Path:
    """The default log directory: ~/Library/Logs on a Mac, elsewhere beside the state."""
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Logs"
    return default_state_dir(os.environ, home=home, platform=sys.platform) / "log"


class _Without(dict[str, str]):
    """The environment without the variables that would override the file under test."""

    def __init__(self, prefix: str) -> None:
        super().__init__({name: value for name, value in os.environ.items() if not name.startswith(prefix)})


def _refuse_to_replace(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists; init overwrites nothing (move it away, or name another file with --config)")


def render(answers: Answers, token_file: str) -> str:
    """The text of the configuration."""
    log_dir = answers.log_dir or usual_log_dir()
    lines = [
        "# Written by `anklet-supervisor init`. Every key: docs/configuration.md in the project.",
        "# `anklet-supervisor check` reports errors in this file, `anklet-supervisor doctor` what this host lacks.",
        "",
        "log:",
        "  # An existing directory for anklet.log; without this key the log goes to standard output.",
        f"  file_dir: {_quoted(str(log_dir.absolute()))}",
        "",
        "metrics:",
        "  # http://127.0.0.1:8080/metrics, for Prometheus on this host.",
        "  port: 8080",
        "",
        "# VMs that run at the same time; macOS allows two.",
        f"vm_limit: {_default('vm_limit')}",
        "# The tool that runs VMs: anka or tart.",
        f"vm_driver: {answers.vm_driver}",
        "",
        "# One service runs one job at a time.",
        "services:",
    ]
    for number in range(1, answers.services + 1):
        lines += [
            f"  - name: RUNNER{number}",
            f"    plugin: {_quoted(answers.plugin)}",
            "    # A file that only you can read; the token is nowhere else.",
            f"    token_file: {_quoted(token_file)}",
            f"    owner: {_quoted(answers.owner)}",
            f"    repo: {_quoted(answers.repo)}",
            *(_TART if answers.vm_driver == "tart" else ()),
            *([f"    registry_url: {_quoted(answers.registry_url)}"] if answers.registry_url else []),
            *_addresses(answers.api_url),
            "    # Time between two polls for jobs.",
            "    sleep_interval: 10",
        ]
    return "\n".join(lines) + "\n"


def _addresses(api_url: str) -> list[str]:
    """The two URLs of a GitHub Enterprise Server: the API's, and without its usual path the URL of the pages."""
    if not api_url:
        return []
    lines = [f"    api_url: {_quoted(api_url)}"]
    if api_url.rstrip("/").endswith(_API_PATH):
        lines.append(f"    server_url: {_quoted(api_url.rstrip('/').removesuffix(_API_PATH))}")
    return lines


_TART = (
    "    # tart:",
    "    #   # For jobs whose labels name no image.",
    "    #   image: ghcr.io/cirruslabs/macos-sequoia-base:latest",
)


def _default(name: str) -> str:
    return next(default_of(HOST, key) for key in HOST.keys if key.name == name)


def _quoted(text: str) -> str:
    """The text in YAML's double quotes, with `${` escaped so that it names no variable."""
    return json.dumps(text.replace("${", "$${"), ensure_ascii=False)
