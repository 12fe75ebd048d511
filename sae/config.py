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


def complete(config: dict[str, Any], schema: str | Path) -> dict[str, Any]:
    """Returns the configuration with every default of the schema filled in.

    Raises:
        InputError: a key is unknown or missing, or a value is of the wrong type or out of range; one line that names
            the key.
    """
    rules = yaml.safe_load(Path(schema).read_text())
    config = _with_defaults(config, rules)
    errors = jsonschema.Draft202012Validator(rules).iter_errors(config)
    error = min(errors, key=lambda e: (list(map(str, e.absolute_path)), e.validator), default=None)
    if error is not None:
        raise InputError(_explain(error, rules))
    return config


def _with_defaults(value: Any, rules: dict[str, Any]) -> Any:
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
        elsewhere = [p for p in _paths(rules) if p.split(".")[-1] == unknown]
        if near:
            hint = f"did you mean {near[0]}?"
        elif elsewhere:
            hint = f"did you mean {elsewhere[0]}?"
        else:
            hint = f"known here: {', '.join(known)}"
        return f"config key {path}: there is no such key; {hint}"
    if error.validator == "required":
        return f"config key {where or '(top level)'}: {error.message}"
    wanted = {
        "type": lambda: f"must be {_either(error.validator_value)}",
        "enum": lambda: f"must be one of {', '.join(map(str, error.validator_value))}",
        "minimum": lambda: f"must be at least {error.validator_value}",
        "maximum": lambda: f"must be at most {error.validator_value}",
        "exclusiveMinimum": lambda: f"must be above {error.validator_value}",
        "exclusiveMaximum": lambda: f"must be below {error.validator_value}",
        "minItems": lambda: f"needs at least {error.validator_value} entry",
        "uniqueItems": lambda: "has an entry twice",
        "pattern": lambda: error.schema.get("description", f"must match {error.validator_value}"),
    }.get(error.validator, lambda: error.message)()
    hint = ""
    if error.validator == "type" and isinstance(error.instance, str):
        try:
            float(error.instance)
            hint = "; YAML reads this as text: write it without quotes and without e-notation (0.001)"
        except ValueError:
            pass
    return f"config key {where}: {error.instance!r} {wanted}{hint}"


def _either(types: str | list[str]) -> str:
    return types if isinstance(types, str) else " or ".join(types)


def _paths(rules: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, rule in rules.get("properties", {}).items():
        yield above + key
        yield from _paths(rule, f"{above}{key}.")
