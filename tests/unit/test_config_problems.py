"""What a wrong configuration is answered with: the exact list of problems, each at its line and column."""

import errno
import os
from pathlib import Path

import pytest

from anklet_supervisor.config.load import ConfigErrors, Severity, load, load_host
from anklet_worker.contract.errors import ConfigError, ExitCode

GOOD = """\
services:
  - name: A
    plugin: github
    owner: acme
    repo: app
    token: t-1
"""
NO_ANCHOR = "put a text that begins with * in quotes (bare, it refers to an anchor, and there is none of that name)"
UNCLOSED = "holds a bad regular expression: missing ), unterminated subpattern, at character 1"
FITS_NO_DIRECTORY = (
    "name must be usable as a directory name: 1 to 64 characters, without '/', control characters, blanks at its ends; not "
    "'.' or '..'"
)


def problems(tmp_path, text, env=None, platform="linux", mode=0o600):
    """All problems of a configuration, as `LINE:COLUMN: message`, the warnings of a good one included."""
    path = tmp_path / "config.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    try:
        _, found = load(path, env or {}, home=tmp_path, platform=platform)
    except ConfigErrors as error:
        found = error.problems
    return [str(problem).removeprefix(f"{path}:").strip() for problem in found]


def service(lines):
    """A good configuration with more lines in its service."""
    return GOOD + "".join(f"    {line}\n" for line in lines.splitlines())


def named(name):
    """A good configuration whose service has this name, as written in YAML."""
    return GOOD.replace("name: A", f"name: {name}")


WHOLE_FILES = {
    "empty": ("", ["the file is empty; it needs `services:` with at least one service"]),
    "only a comment": ("# nothing\n", ["the file is empty; it needs `services:` with at least one service"]),
    "a list": ("- a\n", ["1:1: the file must hold `key: value` lines, with `services:` among them"]),
    "a word": ("hello\n", ["1:1: the file must hold `key: value` lines, with `services:` among them"]),
    "two documents": (f"{GOOD}---\n{GOOD}", ["7:1: not valid YAML: but found another document"]),
    "bad indentation": (
        "services:\n  - name: A\n   plugin: github\n",
        ["3:4: not valid YAML: expected <block end>, but found '<block mapping start>'"],
    ),
    "a tab": ("log:\n\tlevel: INFO\n", ["2:1: not valid YAML: found character that cannot start any token"]),
    "an alias to nothing": (
        "metrics: *gone\n",
        [f"1:10: not valid YAML: {NO_ANCHOR}"],
    ),
    "a tag": ("metrics: !mine 1\n" + GOOD, ["1:10: put a text that begins with ! in quotes"]),
    "a control character": ('metrics: {host: "a\x01b"}\n', ["1:19: not valid YAML: a control character"]),
    "an escape for no character": (
        'metrics: {host: "\\UFFFFFFFF"}\n',
        ["1:20: not valid YAML: an escape for a character that does not exist"],
    ),
    "not UTF-8": (b"# \xe4\nlog: \xff\n", ["1:3: the file is not UTF-8 text"]),
    "nested too deeply": ("a: " + "[" * 5000, ["nested too deeply for a configuration"]),
    "part of itself": (
        f"metrics: &m\n  <<: *m\n{GOOD}",
        ["1:10: this alias refers to a section that contains it"],
    ),
    "a key twice": (f"vm_limit: 1\n{GOOD}vm_limit: 2\n", ["8:1: duplicate key 'vm_limit'; first on line 1"]),
    "a key twice in a service": (service("repo: b"), ["7:5: duplicate key 'repo'; first on line 5"]),
    "a key that is a list": (f"? [a]\n: 1\n{GOOD}", ["1:3: a key must be a plain word"]),
    "no services": ("vm_limit: 1\n", ["1:1: services needs at least one service"]),
    "services with nothing": ("services:\n", ["1:10: services needs at least one service"]),
    "an empty list": ("services: []\n", ["1:11: services needs at least one service"]),
    "services no list": (
        "services:\n  name: A\n",
        ["2:3: services must be a list: one `- name: ...` for each service"],
    ),
    "a service that is a word": (
        "services:\n  - A\n  - [B]\n",
        [
            "2:5: services[1] must be a section of `key: value` lines",
            "3:5: services[2] must be a section of `key: value` lines",
        ],
    ),
    "a section that is a word": (
        f"log: /tmp\nmetrics: [1]\n{GOOD}",
        [
            "1:6: log must be a section of `key: value` lines, not a single value",
            "2:10: metrics must be a section of `key: value` lines, not a list",
        ],
    ),
    "a merge of a word": (f"metrics:\n  <<: word\n{GOOD}", ["2:7: << takes a section, or a list of sections"]),
}


@pytest.mark.parametrize(("text", "expected"), WHOLE_FILES.values(), ids=WHOLE_FILES)
def test_whole_files(tmp_path, text, expected):
    """A file that is no configuration at all is told so, at the place where it goes wrong."""
    path = tmp_path / "config.yml"
    assert [line.removeprefix(f"{path}: ") for line in problems(tmp_path, text)] == expected


HOST_KEYS = {
    "port with a zero ahead": (
        "metrics: {port: 08080}",
        ["1:17: metrics.port must be a whole number without leading zeros (YAML may read it as octal)"],
    ),
    "port 0": ("metrics: {port: 0}", ["1:17: metrics.port must be from 1 to 65535"]),
    "port too high": ("metrics: {port: 65536}", ["1:17: metrics.port must be from 1 to 65535"]),
    "port in words": ("metrics: {port: http}", ["1:17: metrics.port must be a whole number, not 'http'"]),
    "port a list": ("metrics: {port: [1]}", ["1:17: metrics.port must be a single value, not a list"]),
    "port sexagesimal": ("metrics: {port: 2:30}", ["1:17: metrics.port must be a whole number, not '2:30'"]),
    "host": ("metrics: {host: a b}", ["1:17: metrics.host must be an address, not 'a b'"]),
    "log level": ("log: {level: loud}", ["1:14: log.level must be DEBUG, INFO, ERROR or dev, not 'loud'"]),
    "log directory": ("log: {file_dir: /nowhere/at/all}", ["1:17: log.file_dir: no such directory"]),
    "work directory": ("work_dir: gone/", ["1:11: work_dir: no such directory"]),
    "pid directory": ("pid_file_dir: gone", ["1:15: pid_file_dir: no such directory"]),
    "no VM": ("vm_limit: 0", ["1:11: vm_limit must be from 1 to 64"]),
    "driver": ("vm_driver: vmware", ["1:12: vm_driver must be anka or tart, not 'vmware'"]),
    "drain time": ("drain_timeout: 0", ["1:16: drain_timeout must be more than 0"]),
    "drain time in words": (
        "drain_timeout: 2 h",
        ["1:16: drain_timeout must be a duration such as 90, 90s, 5m or 1h, not '2 h'"],
    ),
    "lease": ("lease_ttl: 0.5", ["1:12: lease_ttl must be at least 1"]),
    "not a number": ("lease_ttl: .nan", ["1:12: lease_ttl must be a duration such as 90, 90s, 5m or 1h, not '.nan'"]),
    "attempts": ("job_retry_attempts: -1", ["1:21: job_retry_attempts must be from 0 to 1000"]),
    "a truth as a text": (
        "metrics: {host: on}",
        ["1:17: metrics.host must be text, and YAML reads 'on' as true or false: put it in quotes"],
    ),
    "unknown key": ("vm_limt: 1", ["1:1: unknown key 'vm_limt'; the nearest known key is vm_limit"]),
    "unknown key in a section": (
        "metrics: {prot: 1}",
        ["1:11: unknown key 'metrics.prot'; the nearest known key is metrics.port"],
    ),
    "a newer original's key": ("plugins: []", ["1:1: unknown key 'plugins'; the nearest known key is services"]),
    "a key without use": ("log_file_dir: /var/log", ["1:1: log_file_dir is no longer used; use log.file_dir"]),
    "a shelf for anchors": ("x-shared: {anything: 1}", []),
}


DURATIONS = {
    "lease_ttl: 999ms": ["1:12: lease_ttl must be a duration such as 90, 90s, 5m or 1h, not '999ms'"],
    "lease_ttl: 1h30m": ["1:12: lease_ttl must be a duration such as 90, 90s, 5m or 1h, not '1h30m'"],
    "lease_ttl: -5m": ["1:12: lease_ttl must be at least 1"],
    "lease_ttl: 0.9s": ["1:12: lease_ttl must be at least 1"],
    "lease_ttl: 9000h": ["1:12: lease_ttl must be from 1 to 31622400"],
    "drain_timeout: 0h": ["1:16: drain_timeout must be more than 0"],
    "drain_timeout: 9000h": ["1:16: drain_timeout must be at most 31622400"],
    "lease_ttl: 2m": [],
    "drain_timeout: 8h": [],
}


@pytest.mark.parametrize(("line", "expected"), DURATIONS.items(), ids=DURATIONS)
def test_durations(tmp_path, line, expected):
    """With a unit or without; a key's bounds hold for its seconds."""
    assert problems(tmp_path, f"{line}\n{GOOD}") == expected


@pytest.mark.parametrize(("line", "expected"), HOST_KEYS.values(), ids=HOST_KEYS)
def test_host_keys(tmp_path, line, expected):
    """Each wrong key of the host is told with what it must be."""
    assert problems(tmp_path, f"{line}\n{GOOD}") == expected


LATER = """\
plugins:
  - name: RECEIVER1
    plugin: github_receiver
    hook_id: 489747753
    port: 54321
    secret: bait_secret
    owner: acme
    repo: app
  - name: HANDLER1
    plugin: github
    token: bait_token
    registration_timeout_seconds: 80
    queue_name: shared
    skip_pull: true
    owner: acme
    database:
      enabled: true
      tls_enabled: true
global_receiver_secret: bait_secret
global_database_url: redis.example.com
log:
  split_by_plugin: true
metrics:
  aggregator: true
"""


def test_a_file_of_the_later_original_is_told_key_by_key(tmp_path):
    """What to write instead, at each place; the receiver goes as a whole, and what is well needs no word."""
    path = tmp_path / "config.yml"
    found = [line.removeprefix(f"{path}: ") for line in problems(tmp_path, LATER)]
    assert [line.partition("; ")[0] for line in found] == [
        "1:1: unknown key 'plugins'",
        "3:13: service RECEIVER1: plugin github_receiver is the receiver of a later Anklet",
        "9:5: service HANDLER1: repo is missing",
        "12:5: service HANDLER1: unknown key 'registration_timeout_seconds'",
        "13:5: service HANDLER1: unknown key 'queue_name'",
        "14:5: service HANDLER1: unknown key 'skip_pull'",
        "18:7: service HANDLER1: unknown key 'database.tls_enabled'",
        "19:1: unknown key 'global_receiver_secret'",
        "20:1: unknown key 'global_database_url'",
        "22:3: unknown key 'log.split_by_plugin'",
        "24:3: unknown key 'metrics.aggregator'",
    ]
    assert "bait" not in "".join(found)
    assert found[3].endswith("the nearest known key is deadlines.runner_online")
    assert "remove it: hosts that share a Redis" in found[4]
    assert "the nearest known key is database.url; TLS is rediss://HOST:PORT" in found[6]
    assert "the nearest known key is services[].database.url; with database.enabled: true" in found[8]
    assert "logs --service NAME" in found[9]


SERVICE_KEYS = {
    "unknown key": ("tokn: x", ["7:5: service A: unknown key 'tokn'; the nearest known key is token"]),
    "unknown key in a section": (
        "database: {pasword: x}",
        ["7:16: service A: unknown key 'database.pasword'; the nearest known key is database.password"],
    ),
    "a newer original's key": (
        "runner_group: x",
        ["7:5: service A: unknown key 'runner_group'; the nearest known key is runner.group"],
    ),
    "registration": ("registration: team", ["7:19: service A: registration must be repo or org, not 'team'"]),
    "runner_mode": ("runner_mode: fast", ["7:18: service A: runner_mode must be jit or token, not 'fast'"]),
    "vm_driver": ("vm_driver: qemu", ["7:16: service A: vm_driver must be anka or tart, not 'qemu'"]),
    "sleep_interval negative": ("sleep_interval: -1", ["7:21: service A: sleep_interval must be at least 0"]),
    "sleep_interval zero": (
        "sleep_interval: 0",
        ["7:21: service A: sleep_interval is 0, which would use up the API's rate limit; 1 second is used"],
    ),
    "script arguments": (
        "script_arguments: original",
        ["7:23: service A: script_arguments original shows the registration token in the guest's process list"],
    ),
    "deadlines": (
        "deadlines: {vm_start: 0, cleanup: -5}",
        [
            "7:27: service A: deadlines.vm_start must be more than 0",
            "7:39: service A: deadlines.cleanup must be more than 0",
        ],
    ),
    "patterns": (
        "workflows: {include: ['(', ok], exclude: one}",
        [
            f"7:27: service A: workflows.include {UNCLOSED}",
            "7:46: service A: workflows.exclude must be a list (one `- ` line for each entry)",
        ],
    ),
    "a pattern too large": (
        "workflows: {include: ['a{99999999999}']}",
        ["7:27: service A: workflows.include holds a bad regular expression: it is too large"],
    ),
    "registry": ("registry_url: anka.registry", ["7:19: service A: registry_url must be an http:// or https:// URL"]),
    "a password in a URL": (
        "registry_url: https://me:pw@anka.registry",
        [
            "7:19: service A: registry_url must hold no user or password: process lists and logs would show it",
        ],
    ),
    "a bad port in a URL": ("api_url: http://a:99999", ["7:14: service A: api_url must be an http:// or https:// URL"]),
    "half an address": ("server_url: 'http://['", ["7:17: service A: server_url must be an http:// or https:// URL"]),
    "installation_id": (
        "installation_id: many",
        ["7:22: service A: installation_id must be a whole number, not 'many'"],
    ),
    "a long number": (
        f"installation_id: {'9' * 5000}",
        [f"7:22: service A: installation_id must be a whole number, not '{'9' * 60}...'"],
    ),
    "checksum": ("runner: {sha256: abc}", ["7:22: service A: runner.sha256 must be 64 hexadecimal digits, not 'abc'"]),
    "runner version": (
        "runner: {version: latest}",
        ["7:23: service A: runner.version must be a version like 2.330.0, not 'latest'"],
    ),
    "group of a repository": (
        "runner: {group: big}",
        ["7:21: service A: runner.group is for runners of an organization; this service has registration: repo"],
    ),
    "repositories of a repository": (
        "repos: [a, b]",
        ["7:12: service A: repos is for registration: org; a repository is named with repo"],
    ),
    "no repositories": (
        "registration: org\nrepos: []",
        ["8:12: service A: repos must be a name, a pattern (build-*), or a list of these"],
    ),
    "certificates": (
        "ca_file: gone.pem",
        ["7:14: service A: ca_file names a file that cannot be read: No such file or directory"],
    ),
    "pull": (
        "tart: {pull: sometimes}",
        ["7:18: service A: tart.pull must be if-not-present or always or never, not 'sometimes'"],
    ),
    "password file": (
        "tart: {password_file: gone}",
        ["7:27: service A: tart.password_file names a file that cannot be read: No such file or directory"],
    ),
    "image": ("tart: {image: '-x'}", ["7:19: service A: tart.image must be an image's name, not '-x'"]),
    "display": ("tart: {display: big}", ["7:21: service A: tart.display must be a size like 1920x1080, not 'big'"]),
    "network": ("tart: {network: bridge}", ["7:21: service A: tart.network must be shared or softnet, not 'bridge'"]),
    "mounts": (
        "tart: {mounts: [/cache, 'a:/b:rw', 'a:b', 'ok:/c:ro']}",
        [
            f"7:{column}: service A: tart.mounts must be name:/path or name:/path:ro, not {found}"
            for column, found in ((21, "'/cache'"), (29, "'a:/b:rw'"), (40, "'a:b'"))
        ],
    ),
    "mounts that are no list": (
        "tart: {mounts: 'a:/b'}",
        ["7:20: service A: tart.mounts must be a list (one `- ` line for each entry)"],
    ),
    "guest's user": (
        "tart: {user: -oProxyCommand=x}",
        ["7:18: service A: tart.user must be a user's name, not '-oProxyCommand=x'"],
    ),
    "database flag": (
        "database: {enabled: maybe}",
        ["7:25: service A: database.enabled must be true or false, not 'maybe'"],
    ),
    "database port": ("database: {port: 99999}", ["7:22: service A: database.port must be from 1 to 65535"]),
    "database url": (
        "database: {url: 'http://redis'}",
        ["7:21: service A: database.url must be a host, host:port, or a redis:// or rediss:// URL"],
    ),
    "database twice": (
        "database: {url: 'redis://h:1111', port: 2222}",
        ["7:45: service A: database.port contradicts database.url"],
    ),
    "an unset variable": (
        "registry_url: http://${NOPE}",
        ["7:19: service A: registry_url uses the environment variable NOPE, which is not set"],
    ),
    "half a variable": (
        "database: {user: 'a${b'}",
        [
            "7:22: service A: database.user holds ${ without a variable's name and }; write $${ for a literal ${",
        ],
    ),
    "two tokens": (
        "token_file: /x",
        ["6:12: service A: token and token_file are given; one of them is enough"],
    ),
}


@pytest.mark.parametrize(("line", "expected"), SERVICE_KEYS.values(), ids=SERVICE_KEYS)
def test_service_keys(tmp_path, line, expected):
    """Each wrong key of a service is told with the service's name and what it must be."""
    assert problems(tmp_path, service(line)) == expected


NAMES = {
    "''": ["2:11: services[1]: name is missing"],
    "~": ["2:5: services[1]: name is missing"],
    "no": ["2:11: services[1]: name must be text, and YAML reads 'no' as true or false: put it in quotes"],
    "a/b": [f"2:11: services[1]: {FITS_NO_DIRECTORY}"],
    "..": [f"2:11: services[1]: {FITS_NO_DIRECTORY}"],
    "' A'": [f"2:11: services[1]: {FITS_NO_DIRECTORY}"],
    "x" * 65: [f"2:11: services[1]: {FITS_NO_DIRECTORY}"],
    '"a\\u202eb"': [f"2:11: services[1]: {FITS_NO_DIRECTORY}"],
    '"a\\x07b"': ["2:11: services[1]: name must be one line of text without control characters"],
    '"a\\ud800b"': ["2:11: services[1]: name must be one line of text without control characters"],
    "[A]": ["2:11: services[1]: name must be a single value, not a list"],
    "anklet": ["2:11: service anklet: name makes the environment variable ANKLET_VM_DRIVER, which belongs to the host"],
    "x" * 64: [],
    "${HOSTNAME}": ["2:11: services[1]: name uses the environment variable HOSTNAME, which is not set"],
    "'no'": [],
    "Große Maschine 1": [],
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items(), ids=[f"name-{index}" for index in range(len(NAMES))])
def test_names(tmp_path, name, expected):
    """A name that cannot be a directory's, or takes the host's variables, is refused; others are not."""
    assert problems(tmp_path, named(name)) == expected


TWINS = {
    ("A", "A"): "name is taken by another service: A",
    ("A", "a"): "name is taken by another service: A",
    ("\u00e9", "e\u0301"): "name is taken by another service: \u00e9",
    ("mac 1", "mac.1"): "name makes the environment variable MAC_1_PLUGIN, which belongs to service mac 1",
}


@pytest.mark.parametrize(("names", "message"), TWINS.items(), ids=range(len(TWINS)))
def test_two_services_that_cannot_be_told_apart(tmp_path, names, message):
    """Two services share no name (as a Mac's file system sees it) and no variable of the environment."""
    one = GOOD.replace("name: A", f"name: {names[0]}")
    two = GOOD.replace("name: A", f"name: {names[1]}").removeprefix("services:\n")
    assert problems(tmp_path, one + two) == [f"7:11: service {names[1]}: {message}"]


MISSING = {
    "owner": ["2:5: service A: owner is missing: the user or organization on GitHub"],
    "repo": ["2:5: service A: repo is missing; only services with registration: org need none"],
    "token": ["2:5: service A: token is missing: give a token, or a GitHub App's private_key with its app_id"],
    "plugin": ["2:5: service A: plugin is missing; available: github"],
    "name": ["2:5: services[1]: name is missing"],
}


@pytest.mark.parametrize(("key", "expected"), MISSING.items(), ids=MISSING)
def test_what_is_missing(tmp_path, key, expected):
    """What the service or its plugin cannot do without is asked for, at the service's own place."""
    lines = [line.removeprefix("  - ").strip() for line in GOOD.splitlines()[1:]]
    kept = [line for line in lines if not line.startswith(f"{key}:")]
    text = "services:\n  - " + "\n    ".join(kept) + "\n"
    assert problems(tmp_path, text) == expected


def test_an_organization_needs_no_repo_but_an_owner(tmp_path):
    """With registration: org the repository may be missing, the owner may not."""
    text = service("registration: org").replace("    repo: app\n", "")
    assert problems(tmp_path, text) == []
    assert problems(tmp_path, text.replace("    owner: acme\n", "")) == [
        "2:5: service A: owner is missing: the user or organization on GitHub"
    ]


def test_unknown_plugin(tmp_path):
    """A plugin that is neither installed nor in plugins_path is an error that lists those that are."""
    folder = tmp_path / ".config" / "anklet" / "plugins" / "spool"
    folder.mkdir(parents=True)
    (folder / "plugin.py").touch()
    assert problems(tmp_path, GOOD.replace("plugin: github", "plugin: gitlab")) == [
        "3:13: service A: unknown plugin 'gitlab'; available: github, spool; did you mean github?"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("githb", "unknown plugin 'githb'; available: github; did you mean github?"),
        ("spool", "unknown plugin 'spool'; available: github"),
        ("github_receiver", "plugin github_receiver is the receiver of a later Anklet; there is none here, "),
    ],
)
def test_a_plugin_that_is_not_there(tmp_path, name, message):
    """What there is, and what may be meant. The keys that only the plugin could know are not judged."""
    (problem,) = problems(tmp_path, GOOD.replace("plugin: github", f"plugin: {name}") + "    tokn: x\n")
    assert problem.startswith(f"3:13: service A: {message}")


def test_a_key_app_needs_its_id(tmp_path):
    """A private key without app_id is refused; installation_id may be missing."""
    (tmp_path / "key.pem").write_text("-----BEGIN KEY-----\nabc\n-----END KEY-----\n")
    (tmp_path / "key.pem").chmod(0o600)
    text = GOOD.replace("token: t-1", "private_key: key.pem")
    assert problems(tmp_path, text) == [
        "2:5: service A: app_id is missing: a private_key needs the id of its GitHub App"
    ]
    assert problems(tmp_path, text + "    app_id: 7\n") == []


def test_a_number_for_a_token(tmp_path):
    """A bare number as a token is a slip that is told, without the number."""
    assert problems(tmp_path, GOOD.replace("t-1", "12345")) == [
        "6:12: service A: token must be text, and YAML reads a number here: put it in quotes"
    ]


KEY_FILES = {
    "gone": (None, "private_key names a file that cannot be read: No such file or directory"),
    "no key": (b"hello", "private_key gives no private key in PEM form (-----BEGIN ...)"),
    "empty": (b"", "private_key gives an empty text"),
    "binary": (b"\xff\xfe", "private_key names a file that is not text"),
    "endless": (b"x" * (2 << 20), "private_key names a file that is too large to be right"),
}


@pytest.mark.parametrize(("content", "message"), KEY_FILES.values(), ids=KEY_FILES)
def test_key_files(tmp_path, content, message):
    """A key file that is not there or holds no key is an error at the key's place."""
    if content is not None:
        (tmp_path / "key.pem").write_bytes(content)
        (tmp_path / "key.pem").chmod(0o600)
    text = GOOD.replace("token: t-1", "private_key: key.pem\n    app_id: 7")
    assert problems(tmp_path, text) == [f"6:18: service A: {message}"]


ENVIRONMENT = {
    "A_SLEEP_INTERVAL": ("often", "service A: sleep_interval must be a duration such as 90, 90s, 5m or 1h"),
    "A_DATABASE_PORT": ("0", "service A: database.port must be from 1 to 65535"),
    "A_WORKFLOWS_INCLUDE": (
        "ok,(",
        f"service A: workflows.include {UNCLOSED}",
    ),
    "ANKLET_METRICS_PORT": ("many", "metrics.port must be a whole number"),
    "ANKLET_LOG_LEVEL": ("loud", "log.level must be DEBUG, INFO, ERROR or dev"),
    "LOG_LEVEL": ("loud", "LOG_LEVEL must be DEBUG, INFO, ERROR or dev; using INFO"),
}


@pytest.mark.parametrize(("variable", "case"), ENVIRONMENT.items(), ids=ENVIRONMENT)
def test_wrong_variables(tmp_path, variable, case):
    """A wrong value from the environment is told by its variable, never by its value."""
    value, message = case
    assert problems(tmp_path, GOOD, {variable: value}) == [f"environment:{variable}: {message}"]


def test_two_spellings_in_the_environment(tmp_path):
    """Two ways to one secret contradict each other in the environment, too."""
    assert problems(tmp_path, GOOD, {"A_TOKEN": "x", "A_TOKEN_FILE": "y"}) == [
        "environment:A_TOKEN: service A: token and token_file are given; one of them is enough"
    ]


def test_everything_at_once_in_the_order_of_the_file(tmp_path):
    """All errors are told together; those of the environment come last."""
    text = "metrics: {port: x}\nservices:\n  - name: A\n    plugin: github\n    sleep_interval: -1\n    repo: 1/2\n"
    assert problems(tmp_path, text, {"A_VM_DRIVER": "z"}) == [
        "1:17: metrics.port must be a whole number, not 'x'",
        "3:5: service A: owner is missing: the user or organization on GitHub",
        "3:5: service A: token is missing: give a token, or a GitHub App's private_key with its app_id",
        "5:21: service A: sleep_interval must be at least 0",
        "6:11: service A: repo must be a name of letters, digits, '.', '_' and '-', not '1/2'",
        "environment:A_VM_DRIVER: service A: vm_driver must be anka or tart",
    ]


def test_problems_as_values(tmp_path):
    """A problem knows its file, line, column, severity and service, and the error's exit code is that of a configuration."""
    path = tmp_path / "config.yml"
    path.write_text(service("sleep_interval: 0\nrunner_mode: x"))
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        load(path, {}, home=tmp_path, platform="linux")
    warning, error = caught.value.problems
    assert (warning.line, warning.column, warning.severity, warning.service) == (7, 21, Severity.WARN, "A")
    assert (error.file, error.line, error.severity) == (str(path), 8, Severity.ERROR)
    assert caught.value.exit_code is ExitCode.CONFIG
    assert caught.value.lines()[1] == f"{path}:8:18: service A: runner_mode must be jit or token, not 'x'"


def test_missing_file(tmp_path):
    """A missing file is named in full, with what to do."""
    path = tmp_path / "no" / "config.yml"
    with pytest.raises(ConfigErrors) as caught:
        load(path, {}, home=tmp_path, platform="linux")
    (line,) = caught.value.lines()
    assert line.startswith(f"{path}: no such file; create one")
    assert "ANKLET_CONFIG" in line


def test_a_directory_for_a_file(tmp_path):
    """Something that cannot be read is told with the system's reason."""
    with pytest.raises(ConfigErrors) as caught:
        load(tmp_path, {}, home=tmp_path, platform="linux")
    assert caught.value.lines() == (f"{tmp_path}: cannot be read: {os.strerror(errno.EISDIR)}",)


@pytest.mark.parametrize(
    ("limit", "platform", "refused"), [(2, "darwin", False), (3, "darwin", True), (3, "linux", False)]
)
def test_vm_limit_of_macos(tmp_path, limit, platform, refused):
    """On a Mac no more than two VMs may be asked for, neither by the file nor by the environment."""
    message = "vm_limit must be 1 or 2: macOS runs 2 macOS VMs at once"
    assert problems(tmp_path, f"vm_limit: {limit}\n{GOOD}", platform=platform) == (
        [f"1:11: {message}"] if refused else []
    )
    by_environment = problems(tmp_path, GOOD, {"ANKLET_VM_LIMIT": str(limit)}, platform)
    assert by_environment == ([f"environment:ANKLET_VM_LIMIT: {message}"] if refused else [])


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_others_can_read_a_secret(tmp_path, mode):
    """A literal secret in a file that others can read is a warning; one from elsewhere is not."""
    assert problems(tmp_path, GOOD, mode=mode) == [
        "6:12: others can read this file, which holds a secret here; chmod 600 it, or use a _file key"
    ]
    assert problems(tmp_path, GOOD.replace("t-1", "${T}"), {"T": "x"}, mode=mode) == []
    assert problems(tmp_path, GOOD, {"A_TOKEN": "x"}, mode=mode) == []


def test_others_can_read_a_secrets_own_file(tmp_path):
    """A secret's own file that others can read is a warning, once for each file."""
    (tmp_path / "token").write_text("x\n")
    (tmp_path / "token").chmod(0o644)
    text = GOOD.replace("token: t-1", "token_file: token")
    twice = text + text.replace("name: A", "name: B").removeprefix("services:\n")
    assert problems(tmp_path, twice) == [
        "6:17: service A: others can read the file that holds this secret; chmod 600 it"
    ]


def test_the_hosts_part_alone(tmp_path):
    """Commands that only look for the supervisor's files are not stopped by a service, and run none of its commands."""
    path = tmp_path / "config.yml"
    path.write_text("state_dir: /var/s\nservices:\n  - token_command: /bin/false\n    nonsense: 1\n")
    config = load_host(path, {}, home=tmp_path, platform="linux")
    assert (config.state_dir, config.services) == (Path("/var/s"), ())
    path.write_text("state_dir: [1]\n")
    with pytest.raises(ConfigErrors) as caught:
        load_host(path, {}, home=tmp_path, platform="linux")
    assert caught.value.lines() == (f"{path}:1:12: state_dir must be a single value, not a list",)
