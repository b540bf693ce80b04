"""Finds every ERROR that the sources can log, from their syntax trees, so that the list is complete."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
_METHODS = {"error", "exception", "critical"}


def error_lines():
    """Return the message of every ERROR, with … for the variable parts, mapped to the file that contains it."""
    found = {}
    for path in SOURCES:
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            aliases = _aliases(function)
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and (message := _message(node, aliases)):
                    found[message] = path.name
    return found


def _message(call, aliases):
    function, arguments = call.func, call.args
    if isinstance(function, ast.Attribute) and function.attr in _METHODS and _is_log(function.value):
        return _text(arguments[0])
    if isinstance(function, ast.Name) and function.id in aliases:
        return _text(arguments[0])
    if _name(function) in ("report", "_report", "Report") and arguments and _text(arguments[0]) == "ERROR":
        return _text(arguments[1])
    return None


def _aliases(function):
    """Names bound to an error method: `tell = log.error if ... else log.debug`."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp):
            for branch in (node.value.body, node.value.orelse):
                if isinstance(branch, ast.Attribute) and branch.attr in _METHODS and _is_log(branch.value):
                    names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _is_log(node):
    if isinstance(node, ast.Call):
        return _name(node.func) in ("open_log", "bind", "getLogger")
    return _name(node).lstrip("_").endswith("log")


def _name(node):
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _text(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.replace("%s", "…")
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None
