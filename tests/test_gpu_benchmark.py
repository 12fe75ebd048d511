"""A rehearsal of benchmarks/gpu.py on a CPU: no time on a device may be lost to a typo."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("triton", reason="no Triton for this machine")


def test_every_part_runs(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "ceilings", "step", "extraction", "peers", "--small"]
    command += ["--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": exit code 0,") == 4, done.stdout + done.stderr
    step = json.loads((tmp_path / "step.json").read_text())
    assert {row["step"] for row in step} == {"GpuStep", "AutogradStep"}
    assert {row["method"] for row in step} == {"topk", "batchtopk", "matryoshka"}
    assert all(row["tokens_per_second"] > 0 for row in step)
    # The other trainers are not installed here; this project has to do its part.
    ours = [row for row in json.loads((tmp_path / "peers.json").read_text()) if row["tool"] == "ours"]
    assert ours and all(row["fvu"] < 1 for row in ours)
    text = (tmp_path / "gpu.md").read_text()
    assert [line[4:] for line in text.splitlines() if line.startswith("### ")] == command[2:6]
