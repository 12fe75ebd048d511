"""Checks a configuration against its schema and fills in the defaults."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from sae.errors import InputError
from sae.weight_files import timm_name

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

    Text that can only mean a number or a truth value becomes one: YAML reads 1e-3 as text, and so does Snakemake the
    values inside a section that --config gives. Names of models lose the prefix of their hub.

    Raises:
        InputError: a key is unknown or missing, or a value has the wrong type or is out of range. The message is one
            line that names the key.
    """
    rules = yaml.safe_load(Path(schema).read_text())
    config = _with_defaults(config, rules)
    for section in (config.get("model"), config.get("evidence", {}).get("embedding")):
        if isinstance(section, dict) and isinstance(section.get("name"), str):
            section["name"] = timm_name(section["name"])
    errors = jsonschema.Draft202012Validator(rules).iter_errors(config)
    error = min(errors, key=lambda e: (list(map(str, e.absolute_path)), e.validator), default=None)
    if error is not None:
        raise InputError(_explain(error, rules))
    if "imported" in config:
        _check_imported(config["imported"], config["grid"])
    return config


def page_name(image: str | Path) -> str:
    """Returns the name of the page about an image: no space and no brace, which Snakemake would read as a wildcard."""
    return re.sub(r"[^\w.-]+", "-", Path(image).stem) + ".html"


def _check_imported(path: str | None, grid: dict[str, Any]) -> None:
    """Raises InputError unless each grid point of the method `imported` has a path of its own."""
    if path is None:
        if "imported" in grid["methods"]:
            raise InputError("config key imported: is missing; the method imported needs the path of an SAE")
        return
    if "imported" not in grid["methods"]:
        raise InputError("config key imported: has no effect; add the method imported to grid.methods")
    names = {"layer": "layers", "k": "ks", "seed": "seeds"}
    try:
        path.format(**names)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise InputError(
            f"config key imported: {path!r} may hold {{layer}}, {{k}} and {{seed}}, and no other braces"
        ) from error
    for name, key in names.items():
        if len(grid[key]) > 1 and f"{{{name}}}" not in path:
            raise InputError(f"config key imported: the grid has several {key}; write {{{name}}} into the path")


def _with_defaults(value: Any, rules: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_with_defaults(entry, rules.get("items", {})) for entry in value]
    if not isinstance(value, dict):
        return _plain(value, rules)
    if rules.get("type") != "object":
        return value
    value = dict(value)
    for key, rule in rules.get("properties", {}).items():
        if key not in value and "default" in rule:
            value[key] = deepcopy(rule["default"])
        if key in value:
            value[key] = _with_defaults(value[key], rule)
    return value


def _plain(value: Any, rules: dict[str, Any]) -> Any:
    """Returns the number or truth value that a text stands for, else the value itself; NaN and infinity become text."""
    allowed = rules.get("type", [])
    types = {allowed} if isinstance(allowed, str) else set(allowed)
    if isinstance(value, str) and "string" not in types and "enum" not in rules:
        found: Any = value
        try:
            found = yaml.safe_load(value)
            found = float(value) if isinstance(found, str) else found
        except (ValueError, yaml.YAMLError):
            pass
        if found is None or isinstance(found, bool | int | float):
            value = found
    if "integer" in types and isinstance(value, float) and value.is_integer():
        return int(value)  # JSON Schema takes 4.0 for a whole number, file names would not
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


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
        description = error.schema["properties"][missing]["description"]
        return f"config key {f'{where}.{missing}' if where else missing}: is missing. {description}"
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
        "maxLength": lambda: f"is longer than {value} characters",
    }.get(error.validator, lambda: error.message)()
    return f"config key {where}: {error.instance!r} {problem}"


def _paths(rules: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, rule in rules.get("properties", {}).items():
        yield above + key
        yield from _paths(rule, f"{above}{key}.")
