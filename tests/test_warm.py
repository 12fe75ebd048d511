"""The warm process, as a run of Snakemake uses it: the same results, errors and ends as without."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

SNAKEFILE = """
import os, sys, time
from sae import warm

if os.environ.get("WARM") == "1":
    onstart:
        warm.start()
        begun = time.monotonic()
        while not os.listdir(os.environ["SAE_WARM"]) and time.monotonic() < begun + 300:
            time.sleep(0.1)
        exec(os.environ.get("THEN", ""))

rule all:
    input: "a.txt", "b.txt"

rule:
    output: "{name,[ab]}.txt"
    params: says=lambda wildcards: "hello " + wildcards.name
    threads: 2
    script: "write.py"

rule:
    output: "never-{how}.txt"
    script: "fail.py"
"""
HEAD = (
    '"""A script."""\nfrom sae.warm import hand_over\n\nhand_over()\nimport os, sys, time\nfrom pathlib import Path\n'
)
WRITE = """
in_a_fork = "torch" in sys.modules
import torch
from threadpoolctl import threadpool_info
import numpy
print("said to the terminal")
torch.manual_seed(0)
threads = {pool["num_threads"] for pool in threadpool_info()} | {torch.get_num_threads()}
text = f"{snakemake.params.says} {Path(__file__).name} {max(threads)} threads {torch.rand(1).item()}"
Path(snakemake.output[0]).write_text(text)
Path("forks").joinpath(snakemake.wildcards.name).write_text(str(in_a_fork))
"""
FAIL = """
if snakemake.wildcards.how == "exit":
    sys.exit(3)
if snakemake.wildcards.how == "told":
    sys.exit("no more bones")
if snakemake.wildcards.how == "killed":
    os.kill(os.getpid(), 9)
if snakemake.wildcards.how == "waiting":
    Path("waiting.pid").write_text(str(os.getpid()))
    time.sleep(300)
raise ValueError("the dog ate it")
"""


@pytest.fixture
def code(tmp_path_factory):
    """A copy of a part of the package, whose warm process is soon ready."""
    target = tmp_path_factory.mktemp("code")
    (target / "sae").mkdir()
    for name in ("__init__", "warm", "device", "errors", "geometry"):
        shutil.copy(ROOT / f"sae/{name}.py", target / "sae")
    return target


def begin(folder: Path, *targets: str, code: Path, warm: bool = True, then: str = "") -> subprocess.Popen:
    (folder / "forks").mkdir(parents=True, exist_ok=True)
    (folder / "Snakefile").write_text(SNAKEFILE)
    (folder / "write.py").write_text(HEAD + WRITE)
    (folder / "fail.py").write_text(HEAD + FAIL)
    environment = os.environ | {"WARM": str(int(warm)), "THEN": then, "PYTHONPATH": str(code), "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--verbose", *targets]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def run(folder: Path, *targets: str, **options) -> tuple[int, str]:
    process = begin(folder, *targets, **options)
    output = process.communicate(timeout=600)[0]
    return process.returncode, output


def wait_until(true, seconds: float = 300) -> None:
    begun = time.monotonic()
    while not true():
        assert time.monotonic() < begun + seconds
        time.sleep(0.1)


def lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def in_folder(folder: Path) -> list[int]:
    """Returns the processes that work in a folder or were told of it."""
    mine = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = str(folder).encode() in (process / "cmdline").read_bytes()
            if (told or (process / "cwd").resolve().is_relative_to(folder)) and lives(int(process.name)):
                mine.append(int(process.name))
        except OSError:
            continue
    return mine


def test_a_fork_writes_what_the_script_would(tmp_path):
    code, results = tmp_path / "code", {}
    shutil.copytree(ROOT / "sae", code / "sae", ignore=shutil.ignore_patterns("__pycache__"))
    for warm in (False, True):
        folder = tmp_path / str(warm)[0]
        status, output = run(folder, code=code, warm=warm)
        assert status == 0, output
        assert output.count("said to the terminal") == 2
        assert [(folder / "forks" / name).read_text() for name in "ab"] == [str(warm)] * 2
        results[warm] = [(folder / f"{name}.txt").read_text() for name in "ab"]
        wait_until(lambda here=folder: not in_folder(here))
        assert not list(folder.glob("sae-warm-*"))
    assert results[True] == results[False]
    assert "2 threads" in results[True][0]


def test_failures_are_those_of_the_script(code, tmp_path):
    targets = [f"never-{how}.txt" for how in ("raise", "exit", "told", "killed")]
    status, output = run(tmp_path, *targets, "--keep-going", code=code)
    assert status == 1 and "no more bones" in output
    assert output.count("ValueError: the dog ate it") == 1
    for number in (1, 3, 137):
        assert f"returned non-zero exit status {number}." in output
    assert "ended by signal 9" in output


def test_a_killed_script_takes_its_fork_along(code, tmp_path):
    process = begin(tmp_path, "never-waiting.txt", code=code)
    wait_until((tmp_path / "waiting.pid").exists)
    time.sleep(0.5)
    fork = int((tmp_path / "waiting.pid").read_text())
    assert lives(fork)
    scripts = [
        pid for pid in in_folder(tmp_path) if b"tmp" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1]
    ]
    assert scripts and fork not in scripts
    for pid in scripts:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_until(lambda: not lives(fork), 30)


def test_nothing_outlives_a_killed_snakemake(code, tmp_path):
    process = begin(tmp_path, "never-waiting.txt", code=code)
    wait_until((tmp_path / "waiting.pid").exists)
    process.kill()
    wait_until(lambda: not in_folder(tmp_path), 30)
    process.communicate()


def test_changed_code_is_not_run_by_forks_of_the_old(code, tmp_path):
    folder = tmp_path / "work"
    status, output = run(folder, code=code, then=f"open({str(code / 'sae/geometry.py')!r}, 'a').write('# new')")
    assert status == 0, output
    assert [(folder / "forks" / name).read_text() for name in "ab"] == ["False"] * 2
