"""What a right configuration means: defaults, precedence, secrets, paths, Redis addresses, plugins' own keys."""

import copy
import pickle
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import msgspec
import pytest

from anklet_supervisor.config import services as config_services
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
from anklet_worker.contract.errors import ConfigError
from anklet_worker.contract.rules import Complaint, ServiceRules
from anklet_worker.contract.service import Database, Secret, ServiceConfig, Tart

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
        services=(ServiceConfig(name="A", plugin="github", owner="acme", repo="app", token=Secret("t-1")),),
    )
    one = read(tmp_path).services[0]
    assert (one.sleep_interval, one.runner_mode, one.registration) == (10.0, "jit", "repo")
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
    ],
)
def test_values(tmp_path, line, key, value):
    """A value is what is written, not what YAML makes of it."""
    text = GOOD.replace("    repo: app\n", "    registration: org\n") + f"    {line}\n"
    assert getattr(read(tmp_path, text).services[0], key) == value


def test_checksum_in_capitals(tmp_path):
    """A checksum may be written in capitals."""
    assert service(tmp_path, f"runner: {{sha256: {'AB' * 32}}}").runner.sha256 == "ab" * 32


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
        found = found[int(step)] if step.isdigit() else getattr(found, step)
    assert found == expected


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
    assert with_secret(tmp_path, "token_file: token").token == Secret(f"from {tmp_path.name}")
    assert with_secret(tmp_path, "token_file: ~/token").token == Secret("from home")
    assert with_secret(tmp_path, "token: t\n    database: {password_file: token}").database.password == Secret(
        f"from {tmp_path.name}"
    )


def test_secrets_from_commands(tmp_path):
    """A command's first line of output is the secret; there is no shell between."""
    command = f"{sys.executable} -c 'import sys; print(sys.argv[1:]); print(2)' $HOME '*'"
    assert with_secret(tmp_path, f"token_command: {command}").token == Secret("['$HOME', '*']")


def test_a_key_from_a_command_has_many_lines(tmp_path):
    """A private key's command gives all that it prints."""
    (tmp_path / "key.pem").write_text(PEM)
    found = with_secret(tmp_path, f"private_key_command: cat {tmp_path}/key.pem\n    app_id: 7")
    assert found.private_key == Secret(PEM)


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

    assert with_secret(tmp_path, "token_command: vault read x", run_command=run).token == Secret("s")
    assert asked == [("vault read x", False)]
    with pytest.raises(ConfigErrors, match="token_command gives nothing: the vault is locked"):
        with_secret(tmp_path, "token_command: bad", run_command=run)


@pytest.mark.parametrize("line", ["private_key: key.pem", "private_key_file: key.pem", "private_key: ~/../key.pem"])
def test_private_keys_from_files(tmp_path, line):
    """A private key is the path of its file, as with the original."""
    (tmp_path / "home").mkdir()
    (tmp_path / "key.pem").write_text(PEM)
    (tmp_path / "key.pem").chmod(0o600)
    assert with_secret(tmp_path, f"{line}\n    app_id: 7").private_key == Secret(PEM)


def test_private_keys_as_text(tmp_path):
    """A private key may be the PEM text itself; in the environment on one line, its ends of line escaped."""
    block = "private_key: |\n      " + PEM.replace("\n", "\n      ").strip() + "\n    app_id: 7"
    assert with_secret(tmp_path, block).private_key == Secret(PEM)
    one_line = PEM.strip().replace("\n", "\\n")
    assert with_secret(tmp_path, "private_key: ${KEY}\n    app_id: 7", {"KEY": one_line}).private_key == Secret(PEM)
    assert with_secret(tmp_path, "app_id: 7", {"A_PRIVATE_KEY": PEM}).private_key == Secret(PEM)


def test_the_environment_replaces_every_spelling(tmp_path):
    """A token in the environment is used instead of the file's token_file, which need not even be there."""
    assert with_secret(tmp_path, "token_file: /gone", {"A_TOKEN": "x"}).token == Secret("x")


def test_token_and_key_together(tmp_path):
    """Token and private key may both be given, as with the original; which is used is the plugin's business."""
    (tmp_path / "key.pem").write_text(PEM)
    found = service(tmp_path, "private_key: key.pem\napp_id: 1\ninstallation_id: 2")
    assert found.token == Secret("t-1")
    assert found.private_key == Secret(PEM)


def test_secrets_are_not_shown():
    """A secret shows itself to nobody who does not ask for it, survives the way to a worker, and is refused by encoders."""
    secret = Secret("hush")
    one = ServiceConfig(name="A", plugin="p", token=secret, database=Database(password=Secret("pw")))
    assert "hush" not in f"{secret}{secret!r}{secret!s:>20}{one}{one!r}" + repr([secret]) + "%s" % secret  # noqa: UP031  each way to format
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301  our own bytes
    assert copy.deepcopy(secret).reveal() == "hush"
    assert (Secret("a") == Secret("a"), Secret("a") == Secret("b"), Secret("a") == "a") == (True, False, False)
    assert one.secrets() == ("hush", "pw")
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
    assert found.options == {
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


def complaining(service):
    """Rules that find two keys wrong, one of them given."""
    return [Complaint("folder", "is wrong"), Complaint("runner.group", f"too, {service.name}")]


def failing(service):
    """Rules with a bug."""
    raise RuntimeError(f"token is {service.token}")


RULES = ServiceRules(check=complaining, options=frozenset({"folder"}))
BROKEN = ServiceRules(check=failing, options=frozenset({"folder", "flder"}))
NO_RULES = "nothing of the kind"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "RULES",
            [
                "3:5: service A: runner.group too, A",
                "4:5: service A: folder is wrong",
                "5:5: service A: unknown key 'flder'; the nearest known key is folder",
            ],
        ),
        ("BROKEN", ["3:13: service A: the rules of plugin spool failed: RuntimeError"]),
        ("NO_RULES", ["3:13: service A: the rules of plugin spool are no ServiceRules"]),
        ("GONE", ["3:13: service A: the rules of plugin spool do not load: AttributeError"]),
    ],
)
def test_rules_of_a_plugin(tmp_path, spool, monkeypatch, name, expected):
    """A plugin may bring rules: its own keys by name, and complaints; what its rules do wrong is a problem, too."""
    point = EntryPoint(name="spool", group="anklet.plugin_rules", value=f"{__name__}:{name}")
    monkeypatch.setattr(config_services, "entry_points", lambda **_: [point])
    with pytest.raises(ConfigErrors) as caught:
        read(tmp_path, OPTIONS + "    folder: x\n    flder: y\n")
    found = [f"{one.line}:{one.column}: {one.message}" for one in caught.value.problems]
    assert found == [line.replace("3:5:", "2:5:") for line in expected]


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
