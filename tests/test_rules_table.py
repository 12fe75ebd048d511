"""The table of the cost of each rule, of a small finished run."""

import subprocess
import sys

from conftest import ROOT, snakemake

CONFIG = {"name": "small", "concepts": {"count": 12}}


def table(*folders) -> list[list[str]]:
    command = [sys.executable, str(ROOT / "benchmarks/rules.py"), *map(str, folders)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()]


def test_rules_jobs_seconds_and_memory_of_one_run_and_of_two(tmp_path):
    done = snakemake(tmp_path, "results/small/manifest.parquet", config=CONFIG)
    assert done.returncode == 0, done.stderr
    head, _, *rows = table(tmp_path / "results/small")
    assert head == ["rule", "jobs", "s", "peak MB", "MB written"]
    assert sorted(row[0] for row in rows[:3]) == ["concepts", "images", "manifest"]
    assert [row[0] for row in rows[3:]] == ["all jobs", "wall time"]
    assert [row[1] for row in rows[:4]] == ["1", "1", "1", "3"]
    assert float(rows[3][2]) > 0 and all(float(row[3]) > 20 for row in rows[:4])
    pictures = sum(path.stat().st_size for path in (tmp_path / "results/small/concepts").rglob("*") if path.is_file())
    assert float(next(row for row in rows if row[0] == "concepts")[4]) == round(pictures / 1e6)
    (tmp_path / "results").rename(tmp_path / "moved")  # as one does between two runs in one folder
    head, _, *rows = table(tmp_path / "moved/small", tmp_path / "moved/../moved/small")
    assert len(head) == 9 and all(row[1:5] == row[5:] for row in rows)
