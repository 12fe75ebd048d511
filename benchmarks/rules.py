"""Prints the cost of each rule of a finished run as a Markdown table, and compares two runs.

    uv run python benchmarks/rules.py results/concepts
    uv run python benchmarks/rules.py OTHER/results/concepts results/concepts

Jobs and seconds come from Snakemake's metadata, which lie in `.snakemake` beside `results`. Seconds are from the start
of a job's process to its end, summed over the rule's jobs; the wall time is from the first start to the last end. The
peak memory of a rule is that of its largest job, from the last line of its log. The size is that of all files that its
jobs wrote, as they are now.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pandas as pd

from sae import estimate


def read(results: Path) -> pd.DataFrame:
    """Returns a row for each job of a finished run: rule, start and end (seconds), peak_mb (NaN where unknown)."""
    results = results.resolve()
    metadata = next((p / ".snakemake/metadata" for p in results.parents if (p / ".snakemake/metadata").is_dir()), None)
    jobs: dict[str, dict] = {}
    for path in metadata.rglob("*") if metadata else []:
        record = json.loads(path.read_text()) if path.is_file() else {}
        log = next(iter(record.get("log") or []), "").partition(f"/{results.name}/")[2]
        if (results / log).is_file() and record.get("endtime"):
            job = {"rule": record["rule"], "start": record["starttime"], "end": record["endtime"]}
            jobs[log] = job | {"peak_mb": _peak(results / log)}
    if not jobs:
        raise SystemExit(f"error: {results}: Snakemake's metadata beside it name no finished job of it")
    return pd.DataFrame(jobs.values())


def _peak(log: Path) -> float:
    """Returns the peak memory (MB) that stands in the last line of a job's log, or NaN."""
    found = re.findall(r"^rule \w+: .* peak memory (\d+) MB$", log.read_text(), re.M)
    return float(found[-1]) if found else float("nan")


def summarise(results: Path) -> pd.DataFrame:
    """Returns a row for each rule of a finished run, and a last one for all: jobs, seconds, peak_mb, mb."""
    jobs = read(results)
    jobs = jobs.assign(seconds=jobs["end"] - jobs["start"])
    rules = jobs.groupby("rule").agg(jobs=("rule", "size"), seconds=("seconds", "sum"), peak_mb=("peak_mb", "max"))
    rules["mb"] = estimate.read(results).groupby("rule")["bytes"].sum() / 1e6
    rules = rules.sort_values("seconds", ascending=False)
    wall = jobs["end"].max() - jobs["start"].min()
    everything = {
        "jobs": len(jobs),
        "seconds": rules["seconds"].sum(),
        "peak_mb": rules["peak_mb"].max(),
        "mb": rules["mb"].sum(),
    }
    return pd.concat([rules, pd.DataFrame(everything, ["all jobs"]), pd.DataFrame({"seconds": wall}, ["wall time"])])


def markdown(tables: dict[str, pd.DataFrame]) -> str:
    """Returns the tables of one or two runs, by name, side by side; a rule that one of them lacks has empty cells."""
    last = ["all jobs", "wall time"]
    rules = list(dict.fromkeys(rule for table in tables.values() for rule in table.index if rule not in last)) + last
    units = {"jobs": "jobs", "seconds": "s", "peak_mb": "peak MB", "mb": "MB written"}
    head = ["rule", *(f"{unit}, {run}" if len(tables) > 1 else unit for run in tables for unit in units.values())]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for rule in rules:
        values = [table.reindex(rules).loc[rule, column] for table in tables.values() for column in units]
        rows.append([rule, *("" if pd.isna(value) else f"{value:.0f}" for value in values)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="one or two folders, such as results/concepts")
    folders = parser.parse_args().results
    names = [str(f) for f in folders] if len({str(f) for f in folders}) == len(folders) else ["before", "after"]
    print(markdown({name: summarise(folder) for name, folder in zip(names, folders, strict=True)}))
