"""Checks requests and replies against GitHub's own OpenAPI description, tests/data/github-rest-openapi.json.

Owns the reading of OpenAPI 3.0 (references, `nullable`, formats) and the list of allowed deviations from the description.
Knows neither the emulator nor the plugin: it checks both. Needs jsonschema.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import re
import urllib.parse
from pathlib import Path

import jsonschema

_FILE = Path(__file__).resolve().parents[2] / "data" / "github-rest-openapi.json"
_ERROR = {"$ref": "#/components/schemas/basic-error"}

#: Statuses that every route may answer with. The description names them for some routes only; GitHub's documentation ("Best
#: practices", "Troubleshooting the REST API", "Conditional requests") says that they can come from any.
GENERAL_STATUSES = {400: _ERROR, 401: _ERROR, 403: _ERROR, 404: _ERROR, 429: _ERROR, 304: None}

#: Query parameters that the description types more narrowly than its own text does.
LOOSE_QUERY = {
    "created": "typed as one date-time; the text beside it points to the search syntax, which has ranges and comparisons",
}

#: Keys that GitHub's own replies have in addition to the schema.
LOOSE_KEYS = {
    "user_view_type": "users have it; the copy of simple-user inside of /app/installations leaves it out",
    "status": "errors repeat the HTTP status as text; some of the error schemas leave it out",
}

#: A place where the description contradicts itself: one account is a user *and* an enterprise, with the keys of both. The
#: single installation says `anyOf` there.
_ACCOUNT_OF_LISTED = ("/app/installations", "get", "responses", "200", "content", "application/json", "schema", "items")

_MOST_PER_PAGE = 100


class ContractBroken(Exception):
    """The message says which request or reply breaks which rule, and where in the body."""


def check_request(method, path, query=None, body=None):
    """Raise ContractBroken unless the description allows this request.

    `path` is without /api/v3; `query` a mapping (the caller must reject duplicates first); `body` the parsed JSON or None.
    """
    operation, parts = _operation(method, path)
    where = f"{method} {path}"
    declared = {(one["in"], one["name"]): one for one in map(_resolved, operation.get("parameters", ()))}
    for name, text in parts.items():
        if ("path", name) in declared:
            _check_parameter(where, declared["path", name], text)
    for name, text in (query or {}).items():
        if ("query", name) not in declared:
            raise ContractBroken(f"{where}: there is no query parameter {name!r}")
        _check_parameter(where, declared["query", name], text)
    for (place, name), parameter in declared.items():
        if place == "query" and parameter.get("required") and name not in (query or {}):
            raise ContractBroken(f"{where}: the query parameter {name!r} is missing")
    _check_body(where, operation.get("requestBody"), body)


def _check_body(where, described, body):
    if described is None:
        if body not in (None, {}):
            raise ContractBroken(f"{where}: takes no body, was given {body!r}")
        return
    if body is None:
        if described.get("required"):
            raise ContractBroken(f"{where}: the body is missing")
        return
    _validate(where, "request body", described["content"]["application/json"]["schema"], body, closed=True)


def check_reply(method, path, status, body, *, closed=False):
    """Raise ContractBroken unless the description (or GENERAL_STATUSES) allows this reply to that request.

    `body` is the parsed JSON, None for an empty one. With `closed`, objects must not have keys that the description lacks.
    """
    operation, _ = _operation(method, path)
    where = f"{method} {path} -> {status}"
    described = operation["responses"].get(str(status))
    if described is not None:
        content = _resolved(described).get("content", {})
        schema = content.get("application/json", {}).get("schema")
    elif status in GENERAL_STATUSES or status >= 500:
        schema = GENERAL_STATUSES.get(status)
    else:
        raise ContractBroken(f"{where}: the description has only the statuses {', '.join(operation['responses'])}")
    if schema is None:
        if body is not None and status < 500:
            raise ContractBroken(f"{where}: has no body, got {body!r}")
        return
    if body is None:
        raise ContractBroken(f"{where}: the body is missing")
    _validate(where, "reply", schema, body, closed=closed)


# -- paths and parameters ----------------------------------------------------------------------------


@functools.cache
def description():
    """The parsed description, corrected where it contradicts itself."""
    parsed = json.loads(_FILE.read_text(encoding="utf-8"))
    account = functools.reduce(lambda found, key: found[key], _ACCOUNT_OF_LISTED, parsed["paths"])["properties"][
        "account"
    ]
    account["anyOf"] = account.pop("allOf")
    return parsed


@functools.cache
def _paths():
    """Pairs of a pattern and its operations; those with fewer parameters first, as a literal takes precedence over a parameter."""
    templates = sorted(description()["paths"], key=lambda template: (template.count("{"), template))
    return [(re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", one)), description()["paths"][one]) for one in templates]


def _operation(method, path):
    for pattern, operations in _paths():
        match = pattern.fullmatch(path)
        if match and method.lower() in operations:
            return operations[method.lower()], match.groupdict()
    raise ContractBroken(f"{method} {path}: no such operation in the description")


def _resolved(thing):
    while "$ref" in thing:
        found = description()
        for part in thing["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        thing = found
    return thing


def _check_parameter(where, parameter, text):
    name, schema = parameter["name"], parameter["schema"]
    if name in LOOSE_QUERY:
        return
    value = _typed(schema, str(text))
    _validate(where, f"parameter {name!r}", schema, value, closed=False)
    if name == "per_page" and not 1 <= value <= _MOST_PER_PAGE:
        raise ContractBroken(f"{where}: per_page is 1 to {_MOST_PER_PAGE}, not {value}")
    if name == "page" and value < 1:
        raise ContractBroken(f"{where}: page is 1 at least, not {value}")


def _typed(schema, text):
    """Convert a parameter's text to its schema's type; invalid text stays text, so that the validator complains."""
    if schema.get("type") == "integer" and re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    if schema.get("type") == "boolean" and text in ("true", "false"):
        return text == "true"
    return urllib.parse.unquote(text)


# -- schemas -----------------------------------------------------------------------------------------


def _validate(where, what, schema, value, *, closed):
    errors = list(_validator(json.dumps(schema, sort_keys=True), closed).iter_errors(value))
    if errors:
        error = jsonschema.exceptions.best_match(errors)
        raise ContractBroken(f"{where}: {what}{error.json_path.removeprefix('$')}: {error.message[:400]}")


@functools.cache
def _validator(text, closed):
    schema = {**_converted(json.loads(text), closed), "components": _components(closed)}
    return jsonschema.Draft202012Validator(schema, format_checker=_FORMATS)


@functools.cache
def _components(closed):
    schemas = description()["components"]["schemas"]
    return {"schemas": {name: _converted(schema, closed) for name, schema in schemas.items()}}


def _converted(schema, closed, *, part=False):
    """Convert an OpenAPI 3.0 schema to JSON Schema. `part`: it is one part of an allOf and so does not list all keys."""
    if isinstance(schema, list):
        return [_converted(one, closed) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    for key, value in schema.items():
        if key in ("nullable", "example", "examples", "default", "discriminator", "description", "title"):
            continue
        if key == "properties":
            made[key] = {name: _converted(one, closed) for name, one in value.items()}
        elif key == "allOf":
            made[key] = [_converted(one, closed=False, part=True) for one in value]
        else:
            made[key] = value if key in ("enum", "required") else _converted(value, closed)
    if closed and not part and "properties" in made and "additionalProperties" not in made:
        made["properties"] = {**dict.fromkeys(LOOSE_KEYS, True), **made["properties"]}
        made["additionalProperties"] = False
    return {"anyOf": [{"type": "null"}, made]} if schema.get("nullable") else made


_FORMATS = jsonschema.FormatChecker(formats=("email",))


@_FORMATS.checks("date-time", raises=ValueError)
def _is_date_time(value):
    return not isinstance(value, str) or ("T" in value and dt.datetime.fromisoformat(value).tzinfo is not None)


@_FORMATS.checks("uri", raises=ValueError)
def _is_uri(value):
    if not isinstance(value, str):
        return True
    parts = urllib.parse.urlsplit(value)
    return bool(parts.scheme and parts.netloc) and " " not in value


@_FORMATS.checks("int64")
def _is_int64(value):
    return not isinstance(value, int) or -(2**63) <= value < 2**63
