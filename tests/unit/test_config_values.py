"""What a right configuration means: defaults, precedence, secrets, paths, Redis addresses, plugins' own keys."""

import copy
import pickle
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import msgspec
import pytest
from anklet_github.figures import FIGURES
from anklet_github.settings import GithubSettings, settings_of

from anklet_supervisor.config.load import (
    ConfigErrors,
    LogConfig,
    MetricsConfig,
    SupervisorConfig,
    default_state_dir,
    find_state_dir,
    load,
    service_names,
)
from anklet_supervisor.config.values import RedisAddress, Unfit, parse_redis
from anklet_worker import plugins
from anklet_worker.contract.errors import ConfigError
from anklet_worker.contract.rules import Complaint, ServiceRules
from anklet_worker.contract.service import Database, ServiceConfig, Tart
from anklet_worker.contract.settings import Key, Kind, Secret, Section

TMP = Path("/tmp")  # noqa: S108  where the original says
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----\n"
GOOD = """\
services:
  - name: A
    plugin: github
    owner: acme
    repo: app
    token: t-1
"""


def read(tmp_path, text=GOOD, env=None, **more):
    """The configuration that a text means, in a file that only its owner can read."""
    path = tmp_path / "config.yml"
    path.write_text(text)
    path.chmod(0o600)
    arguments = {"home": tmp_path / "home", "platform": "linux", **more}
    return load(path, env or {}, **arguments)[0]


def service(tmp_path, lines="", env=None, **more):
    """The one service of a good configuration with more lines."""
    text = GOOD + "".join(f"    {line}\n" for line in lines.splitlines())
    return read(tmp_path, text, env, **more).services[0]


def value_of(one, key):
    """The value of a key of a service, be it the core's or the plugin's."""
    return getattr(one, key) if hasattr(one, key) else getattr(settings_of(one), key)


def with_secret(tmp_path, line, env=None, **more):
    """The one service of a configuration whose secret is given by this line."""
    return read(tmp_path, GOOD.replace("token: t-1", line), env, **more).services[0]


def test_defaults(tmp_path):
    """Whatever is not said has the documented default."""
    home = tmp_path / "home"
    state_dir = home / ".local" / "state" / "anklet-supervisor"
    assert read(tmp_path) == SupervisorConfig(
        work_dir=TMP,
        pid_file_dir=state_dir,
        state_dir=state_dir,
        plugins_path=home / ".config" / "anklet" / "plugins",
        log=LogConfig(file_dir=None, level="INFO"),
        metrics=MetricsConfig(host="127.0.0.1", port=8080),
        vm_limit=2,
        vm_driver="anka",
        drain_timeout=None,
        lease_ttl=60.0,
        job_retry_attempts=5,
        services=(
            ServiceConfig(
                name="A",
                plugin="github",
                owner="acme",
                repo="app",
                settings={"token": Secret("t-1")},
                origin="03cecede2eb9e39b",
                figures=FIGURES,
            ),
        ),
    )
    one = read(tmp_path).services[0]
    assert settings_of(one) == GithubSettings(token=Secret("t-1"))
    assert (one.sleep_interval, settings_of(one).runner_mode, settings_of(one).registration) == (10.0, "jit", "repo")
    assert msgspec.structs.astuple(one.deadlines) == (120.0, 120.0, 120.0, 60.0)


@pytest.mark.parametrize(
    ("env", "platform", "expected"),
    [
        ({}, "darwin", "/h/Library/Application Support/anklet-supervisor"),
        ({"XDG_STATE_HOME": "/x"}, "darwin", "/h/Library/Application Support/anklet-supervisor"),
        ({}, "linux", "/h/.local/state/anklet-supervisor"),
        ({"XDG_STATE_HOME": "/x"}, "linux", "/x/anklet-supervisor"),
        ({"XDG_STATE_HOME": "x"}, "linux", "/h/.local/state/anklet-supervisor"),
    ],
)
def test_state_directory(env, platform, expected):
    """State is kept where the platform keeps such things."""
    assert default_state_dir(env, home=Path("/h"), platform=platform) == Path(expected)


def test_paths(tmp_path):
    """`~` is the home, relative paths start at the file, and a trailing slash makes no difference."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "home" / "w").mkdir(parents=True)
    found = read(tmp_path, f"log: {{file_dir: logs/}}\nwork_dir: ~/w/\nstate_dir: /s//\nplugins_path: '~'\n{GOOD}")
    assert found.log.file_dir == tmp_path / "logs"
    assert (found.work_dir, found.state_dir, found.plugins_path) == (tmp_path / "home/w", Path("/s"), tmp_path / "home")


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("repo: 123", "repo", "123"),
        ("repo: 1.10", "repo", "1.10"),
        ("repo: 0777", "repo", "0777"),
        ("repo: 2026-01-02", "repo", "2026-01-02"),
        ("repo: ''", "repo", ""),
        ("repo:", "repo", ""),
        ("repo: !!str no", "repo", "no"),
        ("app_id: 123456", "app_id", "123456"),
        ("app_id: 0", "app_id", None),
        ("installation_id: 900719925474099", "installation_id", 900719925474099),
        ("installation_id: '17'", "installation_id", 17),
        ("installation_id: 0", "installation_id", None),
        ("sleep_interval: 0.5", "sleep_interval", 0.5),
        ("sleep_interval: 0", "sleep_interval", 1.0),
        ("api_url: https://ghe.example/api/v3/", "api_url", "https://ghe.example/api/v3"),
        ("lease_ttl: 30", "lease_ttl", 30.0),
        ("lease_ttl: 1h", "lease_ttl", 3600.0),
        ("sleep_interval: 90s", "sleep_interval", 90.0),
    ],
)
def test_values(tmp_path, line, key, value):
    """A value is what is written, not what YAML makes of it."""
    text = GOOD.replace("    repo: app\n", "    registration: org\n") + f"    {line}\n"
    assert value_of(read(tmp_path, text).services[0], key) == value


def test_checksum_in_capitals(tmp_path):
    """A checksum may be written in capitals."""
    assert service(tmp_path, f"runner: {{sha256: {'AB' * 32}}}").settings["runner"] == {"sha256": "ab" * 32}


def test_settings_of_tart(tmp_path):
    """Each as it is written; mounts may come from the environment, separated by commas."""
    (tmp_path / "password").write_text("x\n")
    lines = (
        "tart: {image: 'ghcr.io/a/b:c', pull: always, cpu: 4, memory: 8192, display: 1920x1080, network: softnet,"
        " mounts: ['cache:/Users/ci/my cache:ro', 'all:/x'], user: ci, password_file: password}"
    )
    assert service(tmp_path, lines).tart == Tart(
        image="ghcr.io/a/b:c",
        pull="always",
        cpu=4,
        memory=8192,
        display="1920x1080",
        network="softnet",
        mounts=("cache:/Users/ci/my cache:ro", "all:/x"),
        user="ci",
        password_file=tmp_path / "password",
    )
    assert service(tmp_path, lines, {"A_TART_MOUNTS": "a:/b, c:/d:ro"}).tart.mounts == ("a:/b", "c:/d:ro")


def test_services_inherit_from_the_host(tmp_path):
    """What a service does not say of driver, lease and attempts, its host says."""
    text = "vm_driver: tart\nlease_ttl: 30\njob_retry_attempts: 2\n" + GOOD + "    lease_ttl: 90\n"
    one = read(tmp_path, text).services[0]
    assert (one.vm_driver, one.lease_ttl, one.job_retry_attempts) == ("tart", 90.0, 2)


def test_merge_keys_and_aliases(tmp_path):
    """Services can share their settings by YAML's own means; own keys win over merged ones, earlier merges over later ones."""
    shared = "x-a: &a {owner: acme, repo: one}\nx-b: &b {repo: two, token: t, plugin: github}\n"
    found = read(
        tmp_path, shared + "services:\n  - {<<: [*a, *b], name: A}\n  - {name: B, repo: three, <<: [*b, *a]}\n"
    )
    assert [(one.name, one.owner, one.repo) for one in found.services] == [("A", "acme", "one"), ("B", "acme", "three")]


def test_variables_in_values(tmp_path):
    """`${NAME}` is the environment's, anywhere in a value of any kind; `$${` is a literal `${`."""
    env = {"HOST": "redis.example", "PORT": "7000", "EMPTY": "", "ODD": "${HOST}"}
    database = service(
        tmp_path, "database: {url: '${HOST}', port: '${PORT}', user: 'a$${HOST}$b${EMPTY}${ODD}'}", env
    ).database
    assert (database.host, database.port, database.user) == ("redis.example", 7000, "a${HOST}$b${HOST}")


def test_a_name_from_the_environment(tmp_path):
    """A service may be called after its host; its variables begin with that name."""
    text = GOOD.replace("name: A", "name: ${HOST}-1")
    found = read(tmp_path, text, {"HOST": "mac", "MAC_1_OWNER": "other"}).services[0]
    assert (found.name, found.owner) == ("mac-1", "other")


@pytest.mark.parametrize(
    ("variable", "value", "path", "expected"),
    [
        ("MAC_1_OWNER", "other", "services.0.owner", "other"),
        ("MAC_1_TOKEN", "secret", "services.0.token", Secret("secret")),
        ("MAC_1_SLEEP_INTERVAL", "3", "services.0.sleep_interval", 3.0),
        ("MAC_1_DATABASE_URL", "h:1", "services.0.database.host", "h"),
        ("MAC_1_DATABASE_ENABLED", "TRUE", "services.0.database.enabled", True),
        ("MAC_1_DATABASE_PASSWORD", "pw", "services.0.database.password", Secret("pw")),
        ("MAC_1_WORKFLOWS_EXCLUDE", "a.*, b,,", "services.0.workflows.exclude", ("a.*", "b")),
        ("MAC_1_DEADLINES_VM_START", "5", "services.0.deadlines.vm_start", 5.0),
        ("MAC_1_DEADLINES_CLEANUP", "5m", "services.0.deadlines.cleanup", 300.0),
        ("MAC_1_SLEEP_INTERVAL", "5 m", None, "SLEEP_INTERVAL: service mac-1: sleep_interval must be a duration such"),
        ("MAC_1_OWNER", "", "services.0.owner", "acme"),
        ("MAC_1_NAME", "other", "services.0.name", "mac-1"),
        ("MAC_1_OWNER", "${HOME}x", None, "must be a name"),
        ("ANKLET_VM_LIMIT", "1", "vm_limit", 1),
        ("ANKLET_LOG_FILE_DIR", "/", "log.file_dir", Path("/")),
        ("ANKLET_LOG_LEVEL", "error", "log.level", "ERROR"),
        ("ANKLET_METRICS_PORT", "9000", "metrics.port", 9000),
        ("ANKLET_METRICS_HOST", "::1", "metrics.host", "::1"),
        ("ANKLET_STATE_DIR", "/s", "state_dir", Path("/s")),
        ("ANKLET_CONFIG", "/elsewhere", "vm_limit", 2),
        ("ANKLET_SERVICES", "x", "vm_limit", 2),
        ("LOG_LEVEL", "debug", "log.level", "DEBUG"),
        ("LOG_LEVEL", "dev", "log.level", "dev"),
        ("LOG_LEVEL", "DEV", "log.level", "INFO"),
        ("LOG_LEVEL", "", "log.level", "DEBUG"),
    ],
)
def test_environment_over_file(tmp_path, variable, value, path, expected):
    """The environment overrides the file: ANKLET_... the host's keys, <SERVICE>_... a service's; empty variables say nothing."""
    text = "log: {level: debug}\n" + GOOD.replace("name: A", "name: mac-1")
    if path is None:
        with pytest.raises(ConfigErrors, match=expected):
            read(tmp_path, text, {variable: value, "HOME": "h"})
        return
    found = read(tmp_path, text, {variable: value})
    for step in path.split("."):
        found = step_into(found, step)
    assert found == expected


def step_into(found, step):
    """One step of a path into a configuration."""
    if step.isdigit():
        return found[int(step)]
    return value_of(found, step) if isinstance(found, ServiceConfig) else getattr(found, step)


def test_log_level_wins_over_all(tmp_path):
    """LOG_LEVEL is stronger than ANKLET_LOG_LEVEL."""
    assert read(tmp_path, env={"LOG_LEVEL": "ERROR", "ANKLET_LOG_LEVEL": "dev"}).log.level == "ERROR"


# ---- secrets ----


def test_secrets_from_files(tmp_path):
    """A secret's own file gives its first line; `~` and relative paths are understood."""
    (tmp_path / "home").mkdir()
    for place in (tmp_path, tmp_path / "home"):
        (place / "token").write_text(f"  from {place.name}  \nsecond line\n")
        (place / "token").chmod(0o600)
    assert settings_of(with_secret(tmp_path, "token_file: token")).token == Secret(f"from {tmp_path.name}")
    assert settings_of(with_secret(tmp_path, "token_file: ~/token")).token == Secret("from home")
    assert with_secret(tmp_path, "token: t\n    database: {password_file: token}").database.password == Secret(
        f"from {tmp_path.name}"
    )


def test_secrets_from_commands(tmp_path):
    """A command's first line of output is the secret; there is no shell between."""
    command = f"{sys.executable} -c 'import sys; print(sys.argv[1:]); print(2)' $HOME '*'"
    assert settings_of(with_secret(tmp_path, f"token_command: {command}")).token == Secret("['$HOME', '*']")


def test_a_key_from_a_command_has_many_lines(tmp_path):
    """A private key's command gives all that it prints."""
    (tmp_path / "key.pem").write_text(PEM)
    found = with_secret(tmp_path, f"private_key_command: cat {tmp_path}/key.pem\n    app_id: 7")
    assert settings_of(found).private_key == Secret(PEM)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/nowhere/at/all", "the command '/nowhere/at/all' cannot be executed"),
        ("false", "the command 'false' ended with exit code 1"),
        ("'true'", "gives an empty text"),
        ("it's", "a quote in it has no end"),
        ("\"''\"", "gives nothing"),
        ("'  '", "must be a command line"),
    ],
)
def test_commands_that_fail(tmp_path, command, message):
    """A command that gives no secret is an error at its place, without its output."""
    with pytest.raises(ConfigErrors, match=message) as caught:
        with_secret(tmp_path, f"token_command: {command}")
    assert caught.value.problems[0].line == 6


def test_the_commands_runner_is_exchangeable(tmp_path):
    """What runs commands is handed in; it hears whether one line or all is wanted, and its refusal is a problem."""
    asked = []

    def run(command, *, whole):
        asked.append((command, whole))
        if command == "bad":
            raise ConfigError("the vault is locked")
        return "s"

    assert settings_of(with_secret(tmp_path, "token_command: vault read x", run_command=run)).token == Secret("s")
    assert asked == [("vault read x", False)]
    with pytest.raises(ConfigErrors, match="token_command gives nothing: the vault is locked"):
        with_secret(tmp_path, "token_command: bad", run_command=run)


@pytest.mark.parametrize("line", ["private_key: key.pem", "private_key_file: key.pem", "private_key: ~/../key.pem"])
def test_private_keys_from_files(tmp_path, line):
    """A private key is the path of its file, as with the original."""
    (tmp_path / "home").mkdir()
    (tmp_path / "key.pem").write_text(PEM)
    (tmp_path / "key.pem").chmod(0o600)
    assert settings_of(with_secret(tmp_path, f"{line}\n    app_id: 7")).private_key == Secret(PEM)


def test_private_keys_as_text(tmp_path):
    """A private key may be the PEM text itself; in the environment on one line, its ends of line escaped."""
    block = "private_key: |\n      " + PEM.replace("\n", "\n      ").strip() + "\n    app_id: 7"
    assert settings_of(with_secret(tmp_path, block)).private_key == Secret(PEM)
    one_line = PEM.strip().replace("\n", "\\n")
    assert settings_of(
        with_secret(tmp_path, "private_key: ${KEY}\n    app_id: 7", {"KEY": one_line})
    ).private_key == Secret(PEM)
    assert settings_of(with_secret(tmp_path, "app_id: 7", {"A_PRIVATE_KEY": PEM})).private_key == Secret(PEM)


def test_the_environment_replaces_every_spelling(tmp_path):
    """A token in the environment is used instead of the file's token_file, which need not even be there."""
    assert settings_of(with_secret(tmp_path, "token_file: /gone", {"A_TOKEN": "x"})).token == Secret("x")


def test_token_and_key_together(tmp_path):
    """Token and private key may both be given, as with the original; which is used is the plugin's business."""
    (tmp_path / "key.pem").write_text(PEM)
    found = settings_of(service(tmp_path, "private_key: key.pem\napp_id: 1\ninstallation_id: 2"))
    assert found.token == Secret("t-1")
    assert found.private_key == Secret(PEM)


def test_secrets_are_not_shown():
    """A secret shows itself to nobody who does not ask for it, survives the way to a worker, and is refused by encoders."""
    secret = Secret("hush")
    settings = {"token": secret, "more": [{"deep": Secret("below")}, "x"], "none": Secret("")}
    one = ServiceConfig(name="A", plugin="p", settings=settings, database=Database(password=Secret("pw")))
    assert "below" not in repr(one)
    assert "hush" not in f"{secret}{secret!r}{secret!s:>20}{one}{one!r}" + repr([secret]) + "%s" % secret  # noqa: UP031  each way to format
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301  our own bytes
    assert copy.deepcopy(secret).reveal() == "hush"
    assert (Secret("a") == Secret("a"), Secret("a") == Secret("b"), Secret("a") == "a") == (True, False, False)
    assert one.secrets() == ("hush", "below", "pw")
    with pytest.raises(TypeError):
        msgspec.json.encode(one)


def test_all_secrets_of_all_services(tmp_path):
    """The host knows every secret of its services once, for redaction."""
    second = GOOD.replace("name: A", "name: B").removeprefix("services:\n") + "    database: {password: pw}\n"
    assert read(tmp_path, GOOD + second).secrets() == ("t-1", "pw")


# ---- Redis ----


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost", RedisAddress(host="localhost")),
        ("redis.example:6380", RedisAddress(host="redis.example", port=6380)),
        ("::1", RedisAddress(host="::1")),
        ("[::1]:6380", RedisAddress(host="::1", port=6380)),
        ("redis://h", RedisAddress(host="h")),
        (
            "rediss://me:p%40ss@h:6380/3",
            RedisAddress(host="h", port=6380, user="me", password="p@ss", database=3, tls=True),
        ),
        ("redis://:pw@h/", RedisAddress(host="h", password="pw")),
    ],
)
def test_redis_addresses(text, address):
    """A database's url is a host, host:port, or a URL with everything in it."""
    assert parse_redis(text) == address


@pytest.mark.parametrize(
    "text",
    ["http://h", "redis://", "h:port", "h:0", "h:99999", "redis://h/x", "redis://h?a=b", "a b", "unix:///s", "["],
)
def test_no_redis_addresses(text):
    """Whatever cannot be a Redis address is refused, without being quoted."""
    with pytest.raises(Unfit) as caught:
        parse_redis(text)
    assert str(caught.value) == "must be a host, host:port, or a redis:// or rediss:// URL"


def test_keys_and_url_of_a_database_complement_each_other(tmp_path):
    """What the URL says counts, the rest comes from the keys; saying the same twice is no contradiction."""
    found = service(
        tmp_path, "database: {enabled: true, url: 'rediss://me:pw@h:7/2', port: 7, user: me, password: pw}"
    ).database
    assert found == Database(enabled=True, host="h", port=7, user="me", password=Secret("pw"), database=2, tls=True)
    assert service(tmp_path, "database: {url: h, port: 7}").database == Database(host="h", port=7)


def test_contradicting_passwords_are_not_shown(tmp_path):
    """A password that the URL contradicts is an error that shows neither."""
    with pytest.raises(ConfigErrors) as caught:
        service(tmp_path, "database: {url: 'redis://:sesame@h', password: mellon}")
    assert [str(problem).partition(": ")[2] for problem in caught.value.problems] == [
        "service A: database.password contradicts database.url"
    ]


# ---- plugins ----


@pytest.fixture
def spool(tmp_path):
    """A plugin of the operator's own, in the usual place."""
    folder = tmp_path / "home" / ".config" / "anklet" / "plugins" / "spool"
    folder.mkdir(parents=True)
    (folder / "plugin.py").touch()


OPTIONS = "services:\n  - name: A\n    plugin: spool\n"


def test_keys_of_another_plugin(tmp_path, spool):
    """Keys that only the plugin knows are handed to it as plain data, `${NAME}` replaced."""
    text = OPTIONS + "    folder: ${WHERE}/in\n    deep: {a: [1, 2.5, -3, yes, 08, 1e9, ~, '7'], b: {c: 0x1F}}\n"
    found = read(tmp_path, text, {"WHERE": "/x"}).services[0]
    assert found.settings == {
        "folder": "/x/in",
        "deep": {"a": [1, 2.5, -3, True, "08", "1e9", None, "7"], "b": {"c": "0x1F"}},
    }
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301  our own bytes


def test_another_plugin_needs_neither_owner_nor_token(tmp_path, spool):
    """What the github plugin needs is not asked of others."""
    assert read(tmp_path, OPTIONS).services[0].plugin == "spool"


def test_options_without_end(tmp_path, spool):
    """A few lines of aliases that mean millions of values, or values nested without end, are refused."""
    bomb = "".join(f"    b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9) if n else '1'}]\n" for n in range(9))
    chain = "".join(f"    c{n}: &c{n} [{f'*c{n - 1}' if n else '1'}]\n" for n in range(900))
    for text in (bomb, chain):
        with pytest.raises(ConfigErrors, match="holds more than 10000 values, or is nested more than 20 deep"):
            read(tmp_path, OPTIONS + text)


class Spool(msgspec.Struct, frozen=True):
    """Settings of a plugin."""

    folder: Path | None = None
    flder: str = ""


FOLDER = Key(name="folder", kind=Kind.DIRECTORY, doc="a folder")
FLDER = Key(name="flder", kind=Kind.TEXT, doc="another")


def complaining(service, settings):
    """Rules that find two keys wrong, one of them given."""
    return [
        Complaint("folder", f"is wrong: {settings.folder.name}"),
        Complaint("runner.group", f"too, {service.name}"),
        Complaint("plugin", "might be better", warning=True),
    ]


def failing(service, settings):
    """Rules with a bug."""
    raise RuntimeError(f"folder is {settings.folder}")


RULES = ServiceRules(settings=Section(name="spool", keys=(FOLDER,), values=Spool), check=complaining)
BROKEN = ServiceRules(settings=Section(name="spool", keys=(FOLDER, FLDER), values=Spool), check=failing)
NO_RULES = "nothing of the kind"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "RULES",
            [
                "3:5: service A: runner.group too, A",
                "3:13: service A: plugin might be better",
                "4:13: service A: folder is wrong: x",
                "5:5: service A: unknown key 'flder'; the nearest known key is folder",
            ],
        ),
        ("BROKEN", ["3:13: service A: the rules of plugin spool failed: RuntimeError"]),
        ("NO_RULES", ["3:13: service A: the rules of plugin spool are not ServiceRules"]),
        ("GONE", ["3:13: service A: the rules of plugin spool do not load: AttributeError"]),
    ],
)
def test_rules_of_a_plugin(tmp_path, spool, monkeypatch, name, expected):
    """A plugin may bring rules: its own keys by name, and complaints; what its rules do wrong is a problem, too."""
    point = EntryPoint(name="spool", group="anklet.plugin_rules", value=f"{__name__}:{name}")
    monkeypatch.setattr(plugins, "_entry_points", lambda group, _name=None: [point] * (group == point.group))
    with pytest.raises(ConfigErrors) as caught:
        read(tmp_path, OPTIONS + "    folder: x\n    flder: y\n")
    found = [f"{one.line}:{one.column}: {one.message}" for one in caught.value.problems]
    assert found == [line.replace("3:5:", "2:5:") for line in expected]


# ---- rules in a file ----

RULES_FILE = """\
from __future__ import annotations
from pathlib import Path
import msgspec
from anklet_worker.contract.figures import Figure
from anklet_worker.contract.rules import Complaint, ServiceRules
from anklet_worker.contract.settings import Key, Kind, Secret, Section, duration, nested

class Inner(msgspec.Struct, frozen=True):
    every: float = 60.0
    password: Secret | None = None

class Settings(msgspec.Struct, frozen=True, kw_only=True):
    folder: Path
    api_token: Secret | None = None
    inner: Inner = Inner()

def check(service, settings):
    if settings.inner.every < 60:
        yield Complaint("inner.every", f"is too short: {settings.inner.every:g}")

RULES = ServiceRules(
    settings=Section(
        name="spool",
        values=Settings,
        keys=(
            Key(name="folder", kind=Kind.DIRECTORY, doc="where scripts are"),
            Key(name="api_token", kind=Kind.SECRET, doc="a token"),
            nested(
                Section(
                    name="inner",
                    values=Inner,
                    keys=(
                        duration("every", "a pause", above=0),
                        Key(name="password", kind=Kind.SECRET, doc="a password"),
                    ),
                ),
                "more",
            ),
        ),
    ),
    check=check,
    origin_keys=("folder",),
    figures=(Figure("scripts", "Scripts that wait."),),
)
"""


@pytest.fixture
def ruled(tmp_path, spool):
    """The plugin of the operator's own, with rules beside it."""
    path = tmp_path / "home" / ".config" / "anklet" / "plugins" / "spool" / "rules.py"
    path.write_text(RULES_FILE)
    return path


def problems_of(tmp_path, text, env=None):
    """Places and messages of what is wrong."""
    with pytest.raises(ConfigErrors) as caught:
        read(tmp_path, text, env)
    return [f"{one.line}:{one.column}: {one.message}" for one in caught.value.problems]


def test_a_plugin_in_a_file_has_typed_settings_too(tmp_path, ruled):
    """With secrets, their spellings, variables of the environment and durations; as plain data on the way to the worker."""
    (tmp_path / "pw").write_text("hush\n")
    (tmp_path / "pw").chmod(0o600)
    text = OPTIONS + "    folder: in/\n    inner: {every: 5m, password_file: pw}\n"
    one = read(tmp_path, text, {"A_API_TOKEN": "open sesame"}).services[0]
    assert one.settings == {
        "folder": tmp_path / "in",
        "api_token": Secret("open sesame"),
        "inner": {"every": 300.0, "password": Secret("hush")},
    }
    assert set(one.secrets()) == {"open sesame", "hush"}
    assert "hush" not in repr(one)
    assert [figure.name for figure in one.figures] == ["scripts"]
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301  our own bytes
    assert len(one.origin) == 16


def test_the_settings_of_a_plugin_in_a_file_are_checked(tmp_path, ruled):
    """What its rules require, what it does not know, and what its check finds."""
    assert problems_of(tmp_path, OPTIONS + "    inner: {evry: 1}\n") == [
        "2:5: service A: folder is missing: where scripts are",
        "4:13: service A: unknown key 'inner.evry'; the nearest known key is inner.every",
    ]
    assert problems_of(tmp_path, OPTIONS + "    folder: x\n    inner: {every: 59s}\n") == [
        "5:20: service A: inner.every is too short: 59"
    ]


def test_an_edited_rules_file_is_read_again(tmp_path, ruled):
    """A reload obeys the rules as they are then."""
    text = OPTIONS + "    folder: x\n"
    assert [figure.name for figure in read(tmp_path, text).services[0].figures] == ["scripts"]
    ruled.write_text(RULES_FILE.replace('"scripts"', '"waiting_scripts"'))
    assert [figure.name for figure in read(tmp_path, text).services[0].figures] == ["waiting_scripts"]


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_rules_file_that_others_may_write_is_not_loaded(tmp_path, ruled, mode):
    """It would run as us."""
    ruled.chmod(mode)
    (problem,) = problems_of(tmp_path, OPTIONS + "    folder: x\n")
    assert problem.startswith(f"3:13: service A: {ruled} can be changed by other users; chmod go-w it")


@pytest.mark.parametrize("name", ["deep/more.py", "deep"])
def test_no_module_below_the_plugin_s_folder_may_be_writable_by_others(tmp_path, ruled, name):
    """`from .deep import more` would run it as us."""
    deep = ruled.parent / "deep"
    deep.mkdir(mode=0o755)
    (deep / "more.py").write_text("found = 1\n")
    (ruled.parent / name).chmod(0o777)
    (problem,) = problems_of(tmp_path, OPTIONS + "    folder: x\n")
    assert f"{ruled.parent / name} can be changed by other users" in problem


@pytest.mark.parametrize("answer", ["return [3]", "return 3", "raise SystemExit(0)"])
def test_a_check_that_answers_with_rubbish_or_wants_to_exit(tmp_path, ruled, answer):
    """One line, not a traceback, and not an exit code of 0."""
    ruled.write_text(RULES_FILE.replace("RULES =", f"def check(service, settings):\n    {answer}\n\nRULES ="))
    (problem,) = problems_of(tmp_path, OPTIONS + "    folder: x\n")
    assert problem.startswith("3:13: service A: the rules of plugin spool failed: ")


def test_an_origin_key_may_have_a_default_that_is_made_anew_each_time(tmp_path, ruled):
    """An empty list, say."""
    text = RULES_FILE.replace("    inner: Inner", "    names: list[str] = []\n    inner: Inner")
    text = text.replace('("folder",),\n    fig', '("folder", "names"),\n    fig')
    names = 'Key(name="names", kind=Kind.TEXTS, doc="names"),'
    ruled.write_text(
        text.replace('            Key(name="folder"', f'            {names}\n            Key(name="folder"')
    )
    ours = read(tmp_path, OPTIONS + "    folder: x\n").services[0].origin
    assert ours == read(tmp_path, OPTIONS + "    folder: x\n    names: []\n").services[0].origin
    assert ours != read(tmp_path, OPTIONS + "    folder: x\n    names: [y]\n").services[0].origin


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("RULES =", "OTHER =", "rules.py defines no 'RULES'"),
        ("import msgspec", "import no_such_module", "does not load: ModuleNotFoundError"),
        (
            'name="api_token"',
            'name="owner"',
            "the rules of plugin spool are wrong: Settings has no field for the key owner",
        ),
        ("    api_token:", "    owner: str = ''\n    api_token:", None),
        ('"scripts"', '"jobs"', "the metric of figure jobs, anklet_jobs, is the core's"),
        ("Kind.DIRECTORY", "Kind.REDIS", "the key folder is of a kind that only the core has"),
        ("Kind.DIRECTORY", "Kind.SECTION", "the key folder must have Kind.SECTION and a section, or neither"),
        ('doc="a token"', 'doc="a token", form="("', "are wrong: error: missing )"),
        ("api_token: Secret", "api_token: Sekret", "are wrong: NameError"),
        ('("folder",),\n    fig', '("fldr",),\n    fig', "origin_keys names fldr, which is no key of the plugin"),
        ('("folder",),\n    fig', '("api_token",),\n    fig', "origin_keys names api_token, which is a secret"),
        ("RULES =", "raise SystemExit(0)\nRULES =", "does not load: SystemExit"),
    ],
)
def test_rules_that_are_wrong(tmp_path, ruled, old, new, message):
    """A plugin author's slip is said in a line, at the service's plugin; its keys are not judged then."""
    assert old in RULES_FILE
    ruled.write_text(RULES_FILE.replace(old, new))
    text = OPTIONS + "    folder: x\n    api_token: t\n"
    if message is None:
        assert read(tmp_path, text).services
        return
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith("3:13: service A: ")
    assert message in problem


def test_a_plugins_key_cannot_be_one_of_the_cores(tmp_path, ruled):
    """Neither by its name, nor by its variable of the environment."""
    for name in ("owner", "database_password"):
        ruled.write_text(RULES_FILE.replace("api_token", name))
        (problem,) = problems_of(tmp_path, OPTIONS + "    folder: x\n")
        assert problem.endswith(f"the key {name} is declared twice, or is the core's")


def test_two_plugins_cannot_declare_a_figure_differently(tmp_path, ruled):
    """One metric has one meaning on a host."""
    other = ruled.parents[1] / "other"
    other.mkdir()
    (other / "plugin.py").touch()
    text = OPTIONS + "    folder: x\n  - {name: B, plugin: other, folder: y}\n"
    (other / "rules.py").write_text(RULES_FILE)
    assert len(read(tmp_path, text).services) == 2
    (other / "rules.py").write_text(RULES_FILE.replace("Scripts that wait.", "Scripts that have run."))
    assert problems_of(tmp_path, text) == [
        "5:23: service B: the rules of plugin other are wrong: plugin spool declares figure scripts differently"
    ]


@pytest.mark.parametrize("key", ["token", "api_token_file", "secret_command", "Private_Key", "x: {deep: [{password"])
def test_a_secret_must_be_declared(tmp_path, spool, key):
    """Without rules nothing would keep it out of logs."""
    line = f"{key}: bait" + "}]}" * ("{" in key)
    (problem,) = problems_of(tmp_path, OPTIONS + f"    {line}\n")
    name = key.rpartition("{")[2]
    assert problem.startswith(f"4:{5 + key.index(name)}: service A: '{name}' looks like a secret")
    assert "rules.py" in problem
    assert "bait" not in problem


def test_settings_without_rules_are_typed_by_the_plugin(tmp_path, spool):
    """What does not fit is said in a line, without a value."""
    one = read(tmp_path, OPTIONS + "    flder: 5\n").services[0]
    with pytest.raises(
        ConfigError, match=r"service A: settings of plugin spool: Expected `str`, got `int` - at `\$.flder`"
    ):
        one.settings_as(Spool)


# ---- where jobs come from ----


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("repo: app", "03cecede2eb9e39b"),
        ("registration: org\n    repos: [build-*, x]", "bb49c7d897da5efe"),
        ("repo: app\n    api_url: https://ghe.example/api/v3\n    ca_file: /dev/null", "93bf15e4978a2909"),
        ("registration: org\n    repos: build-*\n    ca_file: /dev/null", "a5684b8c8bb7f1f2"),
        ("repo: app\n    runner_mode: token\n    sleep_interval: 5", "03cecede2eb9e39b"),
    ],
)
def test_the_origin_of_a_github_service_is_what_it_was(tmp_path, lines, expected):
    """Values that the version before typed settings wrote into records: those are still recognized."""
    assert read(tmp_path, GOOD.replace("repo: app", lines)).services[0].origin == expected


def test_a_key_with_a_value_for_unset(tmp_path):
    """The original's 0 for an App's ids means none."""
    one = service(tmp_path, "app_id: 0\ninstallation_id: 0")
    assert set(one.settings) == {"token"}


# ---- the rest of the file ----


@pytest.mark.parametrize(
    ("text", "env", "expected"),
    [
        ("state_dir: /a\nservices: [\n", {}, "/a"),
        ("state_dir: /a\nvm_limit: x\nmetrics: 3\nunknown: 1\n", {}, "/a"),
        ("state_dir: ~/x\nlog: 5\nwork_dir: []\n", {}, "/h/x"),
        ("state_dir: ${WHERE}/s\n: : :\n", {"WHERE": "/b"}, "/b/s"),
        ("{{{", {"ANKLET_STATE_DIR": "/env"}, "/env"),
        ("state_dir: [1\n", {}, "/h/.local/state/anklet-supervisor"),
        ("", {}, "/h/.local/state/anklet-supervisor"),
        (None, {}, "/h/.local/state/anklet-supervisor"),
        ("\x00", {}, "/h/.local/state/anklet-supervisor"),
    ],
)
def test_the_state_directory_is_found_however_broken_the_file_is(tmp_path, text, env, expected):
    """So that a supervisor can be drained, reloaded or looked at whose file is being edited."""
    path = tmp_path / "config.yml"
    if text is not None:
        path.write_text(text)
    assert find_state_dir(path, env, home=Path("/h"), platform="linux") == Path(expected)


def test_the_names_of_the_services_need_no_secret(tmp_path):
    """No command is run, no file read; what else is wrong with a service is not asked."""
    path = tmp_path / "config.yml"
    path.write_text(
        'services:\n- {name: A, token_command: "touch ran"}\n- {name: "${B}", token_file: /none}\n- 5\n- {x: 1}\n'
    )
    assert service_names(path, {"B": "beta"}, home=Path("/h"), platform="linux") == ["A", "beta"]
    path.write_text("services: [")
    with pytest.raises(ConfigErrors):
        service_names(path, {}, home=Path("/h"), platform="linux")
