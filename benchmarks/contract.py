"""Compares the files of a finished run with docs/data.md.

    uv run python benchmarks/contract.py results/concepts

Tables must have the columns that the page lists, and no others. A number is finite; it may be missing where the page
says so with the word null. JSON, weights, arrays and the explorer's data hold finite numbers alone, and no figure shows
one that is not.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

_PAGE = Path(__file__).resolve().parent.parent / "docs/data.md"
_IN_PATH = {"layer", "k", "method"}  # columns that a reader of metrics/ takes from the path


@cache
def documented() -> dict[str, dict[str, str]]:
    """Returns the columns of each Parquet file, or the keys of each JSON file, and their descriptions.

    The names are as on the page, such as `ranking/P/latents.parquet`; an ending * allows more columns.
    """
    files: dict[str, dict[str, str]] = {}
    copies: dict[str, str] = {}
    for part in re.split(r"\n(?=## |`)|\n\n(?=\| key of)", _PAGE.read_text()):
        named = re.search(r"^(?:## |`|\| key of )(\S+?\.(?:parquet|json))\b", part)
        if named is None:
            continue
        head = part.split("\n|")[0]
        ending = {"*_held_out": head} if "_held_out`" in head else {}
        listed = re.search(r"[Cc]olumns: ([\w,\s]+)(.*)", head)
        rows = [(listed[1], listed[2])] if listed else re.findall(r"^\| ([\w*, ]+) \| (.*) \|$", part, re.M)
        columns = {name.strip(): text for names, text in rows for name in names.split(",")}
        files[named[1]] = ending | {name: text for name, text in columns.items() if text != "description"}
        if same := re.search(r"columns of (\S+\.parquet)", head):
            copies[named[1]] = same[1]
    full = {name.rpartition("/")[2]: columns for name, columns in files.items()}
    return files | {name: full[same] for name, same in copies.items()}


def problems(results: Path) -> list[str]:
    """Returns a sentence for each way in which the files of a run differ from the page."""
    found = [f"{path.relative_to(results)}: not finished" for path in results.rglob("*.part*")]
    for path in sorted(results.rglob("*")):
        name = path.relative_to(results).as_posix()
        found += [f"{name}: {problem}" for problem in _of(path, name)] if path.is_file() else []
    return found


def _of(path: Path, name: str) -> Iterator[str]:
    if path.suffix == ".parquet":
        yield from _of_table(pd.read_parquet(path, partitioning=None), _page_of(name))
    elif path.suffix == ".json":
        facts = json.loads(path.read_text(), parse_constant=_refuse)
        wanted = next((set(keys) for page, keys in documented().items() if page.endswith(path.name)), set())
        if wanted and (differ := wanted ^ (set(facts) - {"provenance", "checksum"})):
            yield f"keys {sorted(differ)} differ"
    elif path.suffix in (".npy", ".safetensors"):
        arrays = {"it": np.load(path)} if path.suffix == ".npy" else load_file(path)
        yield from (f"{key} is not finite" for key, array in arrays.items() if not np.isfinite(array).all())
    elif path.suffix == ".csv" and path.parent.name != "images":
        table = pd.read_csv(path)
        yield from (f"{column} is infinite" for column in table if np.isin(table[column], [np.inf, -np.inf]).any())
        if path.name == "training.csv" and table.isna().any().any():
            yield "a number is missing"
    elif path.suffix == ".js" and "data" in path.parts:
        json.loads(
            path.read_text().partition(",")[2].rstrip().removesuffix(";").removesuffix(")"), parse_constant=_refuse
        )
    elif (
        path.suffix in (".svg", ".html")
        and path.name != "index.html"
        # Pictures inside are base64, in which any letters may stand together.
        and re.search(r"(?<![\w#])nan\b", re.sub(r"base64,[\sA-Za-z0-9+/=]+", "", path.read_text()))
    ):
        yield "shows nan"


def _page_of(name: str) -> dict[str, str]:
    """Returns the columns of a table, from the name on the page that fits it."""
    pages = {re.sub(r"\bP\b", "@", page): columns for page, columns in documented().items()}
    for page, columns in sorted(pages.items(), key=lambda item: -len(item[0])):  # the closest first
        if re.fullmatch("(.*/)?" + re.sub(r"=[A-Z]\b", "=[^/]+", re.escape(page)).replace("@", "layer=.*"), name):
            return {key: text for key, text in columns.items() if page[:8] != "metrics/" or key not in _IN_PATH}
    raise KeyError(f"docs/data.md has no {name}")


def _of_table(table: pd.DataFrame, page: dict[str, str]) -> Iterator[str]:
    endings = [key[1:] for key in page if key.startswith("*_")]
    for column in table:
        base = next((column.removesuffix(e) for e in endings if column.endswith(e) and column not in page), column)
        if base not in page and "*others*" not in page:
            yield f"column {column} is not on the page"
        text = page.get(f"*{column.removeprefix(base)}" if base != column else column, "null").lower()
        numbers = table[column].explode() if table[column].dtype == object else table[column]
        if pd.api.types.is_float_dtype(numbers) and np.isinf(numbers.astype(float)).any():
            yield f"{column} is infinite"
        if "null" not in text and table[column].isna().any():
            yield f"{column} is null in {table[column].isna().sum()} of {len(table)} rows"
    missing = [key for key in page if key not in table and not key.startswith("*")]
    if missing and len(table.columns):  # a table that does not apply to the images has neither rows nor columns
        yield f"columns {missing} are missing"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a folder such as results/concepts")
    wrong = problems(parser.parse_args().results)
    print("\n".join(wrong) or "all files are as docs/data.md describes them")
    sys.exit(bool(wrong))
