"""Writes the tables of keys in docs/config.md from the schema: uv run python docs/tables.py"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parent
PAGE, SCHEMA = DOCS / "config.md", DOCS.parent / "workflow/schemas/config.schema.yaml"
START, END = "<!-- keys: written by docs/tables.py -->\n", "<!-- end of keys -->\n"


def renewed(page: str, schema: dict[str, Any]) -> str:
    """Returns the text of the page with the tables of this schema between the two marks."""
    before, rest = page.split(START)
    after = rest.split(END)[1]
    keys, sections = {}, []
    for key, rule in schema["properties"].items():
        if "properties" in rule:
            sections.append(f"### `{key}`\n\n{rule['description']}\n\n{_table(dict(_leaves(rule, key)))}")
        else:
            keys[key] = rule
    return before + START + "\n" + "\n".join([_table(keys), *sections]) + "\n" + END + after


def _leaves(rule: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if "properties" not in rule:
        yield path, rule
    for key, part in rule.get("properties", {}).items():
        yield from _leaves(part, f"{path}.{key}")


def _table(keys: dict[str, dict[str, Any]]) -> str:
    rows = [f"| `{key}` | {_default(rule)} | {rule['description']} |\n" for key, rule in keys.items()]
    return "| key | default | description |\n|---|---|---|\n" + "".join(rows)


def _default(rule: dict[str, Any]) -> str:
    if "default" not in rule:
        return "*required*"
    text = yaml.safe_dump(rule["default"], default_flow_style=True, width=1000, sort_keys=False)
    return text.removesuffix("...\n").strip()


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(), yaml.safe_load(SCHEMA.read_text())))
