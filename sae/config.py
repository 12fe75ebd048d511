"""Checks a configuration against its schema and fills in the defaults."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from sae.errors import InputError

# JSON Schema's types as YAML's users know them.
_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a section of keys",
    "null": "null",
}


def complete(config: dict[str, Any], schema: str | Path) -> dict[str, Any]:
    """Returns the configuration with every default of the schema filled in.

    Raises:
        InputError: a key is unknown or missing, or a value has the wrong type or is out of range. The message is one
            line that names the key.
    """
    rules = yaml.safe_load(Path(schema).read_text())
    config = _with_defaults(config, rules)
    errors = jsonschema.Draft202012Validator(rules).iter_errors(config)
    error = min(errors, key=lambda e: (list(map(str, e.absolute_path)), e.validator), default=None)
    if error is not None:
        raise InputError(_explain(error, rules))
    return config


def _with_defaults(value: Any, rules: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_with_defaults(entry, rules.get("items", {})) for entry in value]
    if rules.get("type") == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)  # JSON Schema takes 4.0 for a whole number, file names would not
    if not isinstance(value, dict):
        return value
    value = dict(value)
    for key, rule in rules.get("properties", {}).items():
        if key not in value and "default" in rule:
            value[key] = deepcopy(rule["default"])
        if key in value:
            value[key] = _with_defaults(value[key], rule)
    return value


def _explain(error: jsonschema.ValidationError, rules: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in known)
        path = f"{where}.{unknown}" if where else str(unknown)
        near = difflib.get_close_matches(str(unknown), known, 1)
        near += [p for p in _paths(rules) if p.split(".")[-1] == unknown]
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"config key {path}: there is no such key; {hint}"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"config key {where}.{missing}: is missing" if where else f"config key {missing}: is missing"
    value = error.validator_value
    problem = {
        "type": lambda: f"must be {' or '.join(_TYPES[t] for t in ([value] if isinstance(value, str) else value))}",
        "enum": lambda: f"must be one of {', '.join(map(str, value))}",
        "minimum": lambda: f"must be at least {value}",
        "maximum": lambda: f"must be at most {value}",
        "exclusiveMinimum": lambda: f"must be above {value}",
        "exclusiveMaximum": lambda: f"must be below {value}",
        "minItems": lambda: f"needs at least {value} {'entries' if value > 1 else 'entry'}",
        "maxItems": lambda: f"takes at most {value} entries",
        "uniqueItems": lambda: "lists an entry twice",
        "pattern": lambda: f"is not allowed. {error.schema['description']}",
    }.get(error.validator, lambda: error.message)()
    hint = ""
    if error.validator == "type" and isinstance(error.instance, str):
        try:
            float(error.instance)
            hint = "; YAML reads this as text: write it without quotes and without an exponent (0.001)"
        except ValueError:
            pass
    return f"config key {where}: {error.instance!r} {problem}{hint}"


def _paths(rules: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, rule in rules.get("properties", {}).items():
        yield above + key
        yield from _paths(rule, f"{above}{key}.")
