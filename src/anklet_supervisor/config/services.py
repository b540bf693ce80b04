"""The `services` of the configuration -> `ServiceConfig`s.

Owns what a service's keys mean together, what services must not have in common, and which plugin's rules apply. Knows no plugin
by name.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from anklet_supervisor.config.problems import Place, Report
from anklet_supervisor.config.reader import Reader, Scope, Values
from anklet_supervisor.config.schema import HOST, SERVICE, Kind, Section, spellings
from anklet_supervisor.config.tree import Branch, Items, Node, ScalarKind, is_broken, is_null
from anklet_supervisor.config.values import RedisAddress
from anklet_worker.contract.rules import RULES_GROUP, ServiceRules
from anklet_worker.contract.service import (
    Database,
    Deadlines,
    OptionValue,
    Runner,
    Secret,
    ServiceConfig,
    Tart,
    WorkflowFilter,
)

HOST_PREFIX = "ANKLET_"
_LONGEST_NAME, _LONGEST_NAME_BYTES = 64, 255
_SHORTEST_PAUSE = 1.0
_NONE = (("app_id", "0"), ("installation_id", 0))
_INHERITED = ("vm_driver", "lease_ttl", "job_retry_attempts")


class ServicesLoader:
    """Reads all services of one file. `plugins` are the names of the plugins to be had; `host` what services inherit."""

    def __init__(self, reader: Reader, report: Report, plugins: Iterable[str], host: Mapping[str, Any]) -> None:
        self._reader = reader
        self._report = report
        self._plugins = sorted(plugins)
        self._inherited = {key: host[key] for key in _INHERITED if key in host}
        self._rules: dict[str, ServiceRules | None] = {}

    def load(self, node: Node | None, top: Place) -> tuple[ServiceConfig, ...]:
        """The services under `services`; problems go to the report."""
        if node is not None and is_broken(node):
            return ()
        if node is None or is_null(node) or (isinstance(node, Items) and not node.items):
            self._report.error(top if node is None else node.place, "services needs at least one service")
            return ()
        if not isinstance(node, Items):
            self._report.error(node.place, "services must be a list: one `- name: ...` for each service")
            return ()
        read = [self._service(item, index) for index, item in enumerate(node.items, 1)]
        services = [one for one in read if one is not None]
        self._check_names(services)
        return tuple(service for service, _ in services)

    # ---- one service ----

    def _service(self, node: Node, index: int) -> tuple[ServiceConfig, Values] | None:
        if is_broken(node):
            return None
        if not isinstance(node, Branch):
            self._report.error(node.place, f"services[{index}] must be a section of `key: value` lines")
            return None
        scope = self._scope(node, index)
        values = self._reader.section(SERVICE, node, scope)
        self._check_name(values, scope)
        rules = self._rules_of(values, scope)
        options = self._options(node, rules, scope, values)
        service = self._build(values, options, scope)
        if rules is not None:
            self._apply(rules, service, values, scope)
        return service, values

    def _scope(self, node: Branch, index: int) -> Scope:
        """Whose section this is: by its name where it has one that is fit to be shown, else by its number."""
        entry = node.entries.get("name")
        scope = Scope(place=node.place, prefix=None, title=f"services[{index}]: ")
        given = self._reader.text(None if entry is None else entry.value, scope, "name")
        if given is None or given.kind is ScalarKind.FLAG or not is_name(given.text):
            return scope
        prefix = environment_prefix(given.text)
        return Scope(place=node.place, prefix=prefix, service=given.text, title=f"service {given.text}: ")

    def _check_name(self, values: Values, scope: Scope) -> None:
        if "name" in values.wrong:
            return
        name = values.fields.get("name")
        if name is None:
            self._error(values.at("name"), scope, "name is missing")
        elif not is_name(name):
            self._error(
                values.at("name"),
                scope,
                f"name must be fit for a directory's name: 1 to {_LONGEST_NAME} characters, none of them '/' or a control "
                "character, no blank at its ends, neither '.' nor '..'",
            )

    def _rules_of(self, values: Values, scope: Scope) -> ServiceRules | None:
        """The rules of the service's plugin. A plugin that is not to be had allows no keys of its own."""
        name = values.fields.get("plugin", "")
        if name not in self._plugins:
            known = ", ".join(self._plugins) or "none"
            retired = self._retired(name)
            if retired is not None:
                self._error(values.at("plugin"), scope, f"plugin {name} {retired}")
                # The entry has to go as a whole: its keys are not judged.
                return None
            if "plugin" not in values.wrong:
                found = "is none that is installed or in plugins_path" if name else "is missing"
                self._error(values.at("plugin"), scope, f"plugin {found}; known plugins: {known}")
            return ServiceRules(check=lambda _: ())
        if name not in self._rules:
            self._rules[name] = self._load_rules(name, values, scope)
        return self._rules[name]

    def _retired(self, name: str) -> str | None:
        """What some plugin's rules say of a plugin's name that another program has."""
        for point in entry_points(group=RULES_GROUP):
            with contextlib.suppress(Exception):  # that rules do not load is told where they are asked for
                rules = point.load()
                if isinstance(rules, ServiceRules) and name in rules.retired:
                    return rules.retired[name]
        return None

    def _load_rules(self, name: str, values: Values, scope: Scope) -> ServiceRules | None:
        for point in entry_points(group=RULES_GROUP, name=name):
            try:
                rules = point.load()
            except Exception as error:  # noqa: BLE001  a stranger's module: whatever it raises is one more problem
                self._error(
                    values.at("plugin"), scope, f"the rules of plugin {name} do not load: {type(error).__name__}"
                )
                return None
            if isinstance(rules, ServiceRules):
                return rules
            self._error(values.at("plugin"), scope, f"the rules of plugin {name} are no ServiceRules")
        return None

    def _options(
        self, node: Branch, rules: ServiceRules | None, scope: Scope, values: Values
    ) -> dict[str, OptionValue]:
        """The keys that are the plugin's own; unknown ones are refused."""
        options: dict[str, OptionValue] = {}
        for name, place, value in self._reader.unknown_keys(SERVICE, node, scope):
            if rules is None or name in rules.options:
                values.places[name] = place
                options[name] = self._reader.option(value, scope, name)
            else:
                self._reader.refuse(SERVICE, name, place, scope, rules.options)
        return options

    def _build(self, values: Values, options: dict[str, OptionValue], scope: Scope) -> ServiceConfig:
        fields = {"name": "", "plugin": "", **self._inherited, **values.fields, "options": options}
        workflows, runner = fields["workflows"].fields, fields["runner"].fields
        if "sha256" in runner:
            runner["sha256"] = runner["sha256"].lower()
        fields["workflows"] = WorkflowFilter(**workflows)
        fields["database"] = self._database(fields["database"], scope)
        fields["tart"] = Tart(**fields["tart"].fields)
        fields["runner"] = Runner(**runner)
        fields["deadlines"] = Deadlines(**fields["deadlines"].fields)
        if fields.get("sleep_interval") == 0:
            self._warn(
                values, "sleep_interval", scope, "is 0, which would use up the API's rate limit; 1 second is used"
            )
            fields["sleep_interval"] = _SHORTEST_PAUSE
        if fields.get("script_arguments") == "original":
            self._warn(
                values, "script_arguments", scope, "original shows the registration token in the guest's process list"
            )
        # 0 is how the original says "none", or "look it up".
        fields = {key: value for key, value in fields.items() if (key, value) not in _NONE}
        return ServiceConfig(**fields)

    def _database(self, values: Values, scope: Scope) -> Database:
        """What the keys say, and where they say nothing, what the URL says."""
        address: RedisAddress | None = values.fields.pop("url", None)
        if address is None:
            return Database(**values.fields)
        fields = dict(values.fields)
        stated = {
            "port": address.port,
            "database": address.database,
            "user": address.user,
            "password": address.password,
        }
        for key, value in stated.items():
            if value in (None, ""):
                continue
            said = Secret(str(value)) if key == "password" else value
            if key in fields and fields[key] != said:
                self._error(values.at(key), scope, f"database.{key} contradicts database.url")
            fields[key] = said
        return Database(host=address.host, tls=address.tls, **fields)

    def _apply(self, rules: ServiceRules, service: ServiceConfig, values: Values, scope: Scope) -> None:
        """Ask the plugin. What concerns a key that is wrong anyway is not said twice."""
        try:
            complaints = tuple(rules.check(service))
        except Exception as error:  # noqa: BLE001  a stranger's function: whatever it raises is one more problem
            self._error(
                values.at("plugin"), scope, f"the rules of plugin {service.plugin} failed: {type(error).__name__}"
            )
            return
        for complaint in complaints:
            if not any(values.is_wrong(key) for key in (complaint.key, *complaint.instead)):
                self._error(values.at(complaint.key), scope, f"{complaint.key} {complaint.message}")

    # ---- all services ----

    def _check_names(self, services: list[tuple[ServiceConfig, Values]]) -> None:
        """No two services may share a directory or a variable of the environment, nor take one of the host's."""
        names: dict[str, str] = {}
        owners = dict.fromkeys((*variables(HOST, HOST_PREFIX), "LOG_LEVEL"), "the host")
        for service, values in services:
            if not is_name(service.name):
                continue
            folded = _folded(service.name)
            place = values.at("name")
            scope = Scope(place=place, prefix=None, service=service.name, title=f"service {service.name}: ")
            if folded in names:
                self._error(place, scope, f"name is taken by another service: {names[folded]}")
                continue
            names[folded] = service.name
            own = list(variables(SERVICE, environment_prefix(service.name)))
            clash = next((variable for variable in own if variable in owners), None)
            if clash is not None:
                self._error(
                    place, scope, f"name gives the environment variable {clash}, which is also that of {owners[clash]}"
                )
            owners.update(dict.fromkeys(own, f"service {service.name}"))

    def _error(self, place: Place, scope: Scope, message: str) -> None:
        self._report.error(place, scope.title + message, scope.service)

    def _warn(self, values: Values, key: str, scope: Scope, message: str) -> None:
        self._report.warn(values.at(key), f"{scope.title}{key} {message}", scope.service)


def is_name(name: str) -> bool:
    """True when a service may be called that: it becomes a directory's name and stands in logs and metrics."""
    return (
        0 < len(name) <= _LONGEST_NAME
        and len(name.encode(errors="replace")) <= _LONGEST_NAME_BYTES
        and name not in (".", "..")
        and "/" not in name
        and name.isprintable()
        and name == name.strip()
    )


def environment_prefix(service: str) -> str:
    """What the variables of a service begin with: its name in capitals, `_` for all but ASCII letters and digits."""
    return re.sub("[^A-Z0-9]", "_", _folded(service).upper()) + "_"


def variables(section: Section, prefix: str) -> Iterator[str]:
    """Every variable of the environment that overrides a key of the section."""
    for key in section.keys:
        if key.section is not None and key.kind is Kind.SECTION:
            yield from variables(key.section, f"{prefix}{key.name.upper()}_")
        elif key.from_environment:
            yield from (f"{prefix}{name.upper()}" for name in spellings(key))


def _folded(name: str) -> str:
    """Names that are equal in this form are one directory on a Mac, whose file system ignores case and composition."""
    return unicodedata.normalize("NFC", name).casefold()
