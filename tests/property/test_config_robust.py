"""Whatever stands in a configuration, reading it ends in a configuration or in `ConfigErrors`, and no secret is ever shown."""

import re
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from anklet_supervisor.config.host_keys import HOST
from anklet_supervisor.config.load import ConfigErrors, SupervisorConfig, load
from anklet_supervisor.config.plugin_rules import PluginRules
from anklet_worker.contract.errors import ConfigError
from anklet_worker.contract.settings import Kind

#: The keys of a service of the github plugin.
SERVICE = PluginRules(Path("/nonexistent")).of("github").section
MARK = "s3cr3tmark"


@pytest.fixture(scope="module")
def folder():
    """One folder for all examples of this module."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def outcome(folder, text, env=None):
    """The configuration, or the errors, and everything that a log could hold of either."""
    path = folder / "config.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))

    def run(command, *, whole):
        raise ConfigError("there are no commands in this test")

    try:
        config, problems = load(path, env or {}, home=folder, platform="darwin", run_command=run)
    except ConfigErrors as errors:
        return errors, f"{errors} {errors!r} {errors.problems!r} {errors.lines()}"
    return config, f"{config} {config!r} {problems!r} {[*map(str, problems)]}"


def names(section):
    """Every key that may stand in a section or those inside it."""
    for key in section.keys:
        yield from key.spellings()
        if key.section is not None:
            yield from names(key.section)


KEYS = sorted({*names(HOST), *names(SERVICE), "<<", "x-shelf", "plugins"})
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.dates(),
    st.binary(max_size=4),
    st.text(max_size=12),
    st.sampled_from(
        ["github", "repo", "org", "jit", "0", "-1", "08080", "${HOME}", "${", "$${x}", "~", "a/b", "..", "("]
    ),
    st.sampled_from(["http://[", "redis://u:p@h:1/x", "rediss://h", "h:99999", "\0", "\ud800", "a" * 300, "9" * 5000]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner),
    max_leaves=12,
)
SERVICES = st.lists(
    st.dictionaries(st.sampled_from(sorted(names(SERVICE))), TREES, max_size=8).map(
        lambda more: {"name": "A", "plugin": "github", "owner": "o", "repo": "r", "token": "t", **more}
    ),
    max_size=3,
)
CONFIGS = st.dictionaries(st.sampled_from(KEYS), TREES, max_size=5) | st.builds(
    lambda host, services: {**host, "services": services},
    st.dictionaries(
        st.sampled_from([key.name for key in HOST.keys if key.kind is not Kind.SERVICES]), TREES, max_size=4
    ),
    SERVICES,
)
relaxed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@relaxed
@given(tree=CONFIGS | TREES)
def test_any_tree(folder, tree):
    """No tree of values brings the reader down."""
    try:
        text = yaml.safe_dump(tree, allow_unicode=True)
    except (yaml.YAMLError, ValueError):
        assume(False)
    found, _ = outcome(folder, text, {"HOME": "/h"})
    assert found.services if isinstance(found, SupervisorConfig) else found.problems


YAML_PIECES = st.lists(
    st.sampled_from(
        [
            *"a{}[],#'\"@`~\t\\\n",
            "services",
            "name",
            ": ",
            "- ",
            "  ",
            "&x ",
            "*x",
            "!t ",
            "!!int ",
            "<<: ",
            "|\n",
            ">\n",
        ]
    )
    | st.sampled_from(["%YAML 1.1\n", "---\n", "...\n", "? ", "\\x", "0x", "1_0"]),
    max_size=25,
).map("".join)


@relaxed
@given(text=YAML_PIECES | st.text(max_size=40) | st.binary(max_size=40))
@example(text='a: "\\UFFFFFFFF"')
@example(text="a: &a [*a]")
@example(text="services: &s\n- <<: *s\n")
@example(text="%YAML " + "9" * 5000 + ".1\n---\na: 1")
@example(text="? {a: 1}\n: 2")
def test_any_text(folder, text):
    """No text brings the reader down, be it YAML or not."""
    found, _ = outcome(folder, text)
    assert found.services if isinstance(found, SupervisorConfig) else found.problems


SECRET_LINES = [
    "token: {}",
    "token: '{}'",
    'token: "{}"',
    "token: |\n      {}",
    "token: *{}",
    "token: !{} x",
    "token: &{} &{}",
    "token: [{}]",
    "token: {}: {}",
    "token: @{}",
    "token: '{}",
    "token_file: {}",
    "private_key: {}",
    "private_key: '-----BEGIN {}'",
    "private_key_file: ~/{}",
    "database: {{password: {}}}",
    "database: {{password: {}, url: 'redis://:other@h'}}",
    "database: {{url: 'redis://u:{}@h:port'}}",
    "database: {{url: 'rediss://u:{}@h:1/2', port: 3}}",
    "database: {{url: 'http://u:{}@h'}}",
    "database: {{password_file: {}}}",
    "registry_url: https://u:{}@h",
    "api_url: ftp://u:{}@h",
]


@relaxed
@given(
    line=st.sampled_from(SECRET_LINES),
    form=st.sampled_from(["{}", "ghp_{}", "{}\x07", "{}\ud800", "a b {}", "{}: x", "{} #", "%{}", "{}" * 30]),
    wrong=st.sampled_from(["", "runner_mode: x", "sleep_interval: -1", "oops: 1", "name: B", "\tx"]),
)
def test_secrets_in_the_file_are_never_shown(folder, line, form, wrong):
    """However a secret is written, or miswritten, no problem, no exception and no configuration shows it."""
    secret = form.format(*[MARK] * 30)
    written = line.replace("{{", "{").replace("}}", "}").replace("{}", secret)
    text = f"services:\n  - name: A\n    plugin: github\n    owner: o\n    repo: r\n    {written}\n    {wrong}\n"
    _, shown = outcome(folder, text)
    assert MARK not in shown


VARIABLES = sorted(
    {f"A_{name.upper()}" for key in SERVICE.keys for name in key.spellings()}
    | {"A_DATABASE_PASSWORD", "A_DATABASE_URL", "A_DATABASE_PORT", "A_WORKFLOWS_INCLUDE", "A_DEADLINES_VM_START"}
    | {
        "ANKLET_METRICS_PORT",
        "ANKLET_METRICS_HOST",
        "ANKLET_LOG_LEVEL",
        "ANKLET_VM_DRIVER",
        "LOG_LEVEL",
        "ANKLET_LEASE_TTL",
    }
)
#: Keys that are no secrets: their values may be seen in a configuration, though never in a problem.
OPEN = re.compile(r"(?:\w+=|'\w+': )('[^']*'|\('[^']*',\)|PosixPath\('[^']*'\))")


@relaxed
@given(variable=st.sampled_from(VARIABLES), form=st.sampled_from(["{}", "http://u:{}@h", "({}", "{}\n", "{}\udcff"]))
def test_values_of_the_environment_are_never_shown(folder, variable, form):
    """A secret that somebody put into the wrong variable stands in no problem; in the right one it stands nowhere."""
    text = "services:\n  - name: A\n    plugin: github\n    owner: o\n    repo: r\n    token: t\n"
    found, shown = outcome(folder, text, {variable: form.format(MARK)})
    if isinstance(found, SupervisorConfig) and "TOKEN" not in variable and "PASSWORD" not in variable:
        shown = OPEN.sub("", shown)
    assert MARK not in shown


@relaxed
@given(
    key=st.sampled_from(
        ["metrics: {{port: {}}}", "log: {{level: {}}}", "vm_driver: {}", "lease_ttl: {}", "metrics: {{host: {}}}"]
    ),
    form=st.sampled_from(["'${T}'", "'a ${T} b'", "'${T'", "'$${T} ${T}'"]),
)
def test_what_variables_bring_is_never_quoted(folder, key, form):
    """A value with a `${NAME}` in it is not quoted in a problem."""
    line = key.replace("{{", "{").replace("}}", "}").replace("{}", form)
    found, shown = outcome(folder, f"{line}\nservices: []\n", {"T": f"{MARK} x"})
    assert isinstance(found, ConfigErrors)
    assert MARK not in shown
