"""One flipped byte in any file of a finished run is found, and what reads the file refuses it."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, planned, snakemake

import sae
from sae import InputError, files, jobs, verify
from sae.evidence.layer_facts import LayerFacts

CONFIG = {
    "name": "small",
    "concepts": {"count": 60},
    "shards": 2,
    "grid": {"layers": [3], "ks": [4], "methods": ["topk"], "baselines": []},
    "sae": {"expansion": 1},
    "training": {"epochs": 2, "batch": 256},
    "ranking": {"support": 4},
    "evidence": {"latents": 2, "images": 2},
}
POINT = "layer=3/k=4/method=topk/seed=0"
R = Path("results/small")
WANTED = ["explorer/index.html", "report/layers.csv", f"report/{POINT}/training.svg"]
CHECKPOINT = R / f"checkpoints/{POINT}.safetensors"
SHARD = R / "activations/layer=3/shard=0000.npy"
# A file of each kind, and the output to make anew where that is a folder.
KINDS = {
    "concepts/images/00007.png": "concepts",
    "concepts/masks.npy": "concepts",
    "manifest.parquet": None,
    "pixels/shard=0000.npy": None,
    "reference/reference.json": None,
    "reference/features.npy": None,
    "activations/layer=3/shard=0000.npy": None,
    "activations/layer=3/shard=0000.json": None,
    "activations/layer=3/statistics.json": None,
    "activations/layer=3/layer.safetensors": None,
    f"sae/{POINT}/sae.safetensors": None,
    f"sae/{POINT}/sae.json": None,
    f"sae/{POINT}/training.csv": None,
    f"codes/{POINT}/codes.safetensors": None,
    "activations/layer=3/gradients.safetensors": None,
    "activations/layer=3/pairs.safetensors": None,
    f"codes/{POINT}/responses.safetensors": None,
    f"codes/{POINT}/attributions.safetensors": None,
    f"ranking/{POINT}/latents.parquet": None,
    "report/layers.csv": None,
    f"report/{POINT}/training.svg": None,
    "explorer/index.html": None,
    "explorer/app/core.js": "explorer/app",
    f"explorer/data/{POINT}/table.js": f"explorer/data/{POINT}",
    "explorer/pictures/0.webp": "explorer/pictures",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder after a small run, with a checkpoint as an interrupted training leaves it."""
    folder = tmp_path_factory.mktemp("small")
    done = snakemake(folder, *(str(R / path) for path in WANTED), config=CONFIG)
    assert done.returncode == 0, done.stdout + done.stderr
    arrays = files.read_arrays(folder / R / f"sae/{POINT}/sae.safetensors")[0]
    files.write_arrays(folder / CHECKPOINT, arrays, {"identity": {}, "progress": []})
    return folder


@pytest.fixture
def here(finished, monkeypatch) -> Path:
    monkeypatch.chdir(finished)
    return finished


class Flipped:
    """Flips a bit in the middle of a file for a while; its times stay the same, as with bit rot."""

    def __init__(self, path: Path):
        self._path, self._content, self._stat = path, path.read_bytes(), path.stat()

    def __enter__(self):
        half = len(self._content) // 2
        self._write(self._content[:half] + bytes([self._content[half] ^ 1]) + self._content[half + 1 :])

    def __exit__(self, *_):
        self._write(self._content)

    def _write(self, content: bytes):
        self._path.write_bytes(content)
        os.utime(self._path, ns=(self._stat.st_atime_ns, self._stat.st_mtime_ns))


def made_now() -> dict[str, dict[str, str]]:
    receipts = map(files.read_json, (R / "receipts").rglob("*.json"))
    return {facts["rule"]: {"code": facts["settings"]["code"]} for facts in receipts}


def report(now=None, **versions) -> None:
    verify.report(R, "--use-conda", now or made_now(), jobs.versions() | versions)


def test_a_clean_run_is_clean(here, capsys):
    report()
    made = [path for path in R.rglob("*") if path.is_file() and path.name != ".snakemake_timestamp"]
    count = sum(path.parts[2] not in ("logs", "receipts") for path in made)
    assert count > 100
    assert capsys.readouterr().err == f"results/small: all {count} files are as they were written\n"


@pytest.mark.parametrize("name", KINDS)
def test_one_flipped_byte_is_found_and_named_with_the_command_that_makes_it_anew(here, capsys, name):
    with Flipped(R / name), pytest.raises(InputError, match=r"results/small: 1 of \d+ files is damaged or missing"):
        report()
    command = f"snakemake --cores 1 --force {R / (KINDS[name] or name)} --use-conda"
    assert capsys.readouterr().err == f"{R / name} is damaged; make it anew: {command}\n"


def test_a_damaged_checkpoint_or_receipt_and_missing_or_unknown_files_are_named(here, capsys):
    target = f"snakemake --cores 1 --force {R}/sae/{POINT}/sae.safetensors --use-conda"
    with Flipped(CHECKPOINT), pytest.raises(InputError, match="1 of"):
        report()
    command = f"rm {CHECKPOINT} && {target}"
    assert capsys.readouterr().err == f"{CHECKPOINT} is damaged; begin this training again: {command}\n"

    receipt = R / "receipts/report/layers.csv.json"
    moved = R / "sae" / POINT / "other.safetensors"
    (R / "sae" / POINT / "sae.safetensors").rename(moved)
    try:
        with Flipped(receipt), pytest.raises(InputError, match=r"2 of \d+ files are damaged or missing"):
            verify.report(R, "", {}, jobs.versions())
    finally:
        moved.rename(R / "sae" / POINT / "sae.safetensors")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"{receipt} is damaged; make it anew: snakemake --cores 1 --force {R}/report/layers.csv")
    assert lines[1].startswith(f"{R}/sae/{POINT}/sae.safetensors is missing; make it anew: ")
    assert lines[2] == f"without a receipt, so not compared: 2 files, such as {R}/report/layers.csv"


def test_without_receipts_nothing_can_be_compared(tmp_path):
    with pytest.raises(InputError, match="receipts: there are no receipts to compare with; run the workflow first"):
        verify.report(tmp_path, "", {}, {})


def test_other_code_weights_and_versions_are_reported_and_are_no_damage(here, capsys):
    now = made_now()
    now["train"]["code"] = "changed"
    now["extract"]["weights"] = "changed"
    report(now, numpy="1.0", python="3.0")
    lines = capsys.readouterr().err.splitlines()
    found = jobs.versions()
    outputs = sum(1 for _ in (R / "receipts").rglob("*.json"))
    assert lines[0].startswith(
        f"made by numpy {found['numpy']}, now 1.0: {outputs} of {outputs} outputs, of the rules "
    )
    assert lines[1] == f"made by other code than now: 6 of {outputs} outputs, of the rules train"
    assert lines[2] == f"made by other weights than now: 4 of {outputs} outputs, of the rules extract"
    assert lines[3].startswith(f"made by python {found['python']}, now 3.0: ") and "all" in lines[4]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (f"sae/{POINT}/sae.safetensors", lambda: sae.load(R / "sae" / POINT)),
        (f"sae/{POINT}/sae.json", lambda: sae.load(R / "sae" / POINT)),
        (f"codes/{POINT}/codes.safetensors", lambda: sae.codes(R / "codes" / POINT)),
        (f"codes/{POINT}/responses.safetensors", lambda: files.read_arrays(R / f"codes/{POINT}/responses.safetensors")),
        ("activations/layer=3/shard=0000.npy", lambda: sae.Activations.open([SHARD])),
        ("activations/layer=3/shard=0000.json", lambda: sae.Activations.open([SHARD])),
        ("activations/layer=3/layer.safetensors", lambda: LayerFacts.load(R / "activations/layer=3/layer.safetensors")),
        ("reference/reference.json", lambda: files.read_json(R / "reference/reference.json")),
    ],
)
def test_what_reads_a_file_refuses_a_flipped_byte(here, name, read):
    read()
    with (
        Flipped(R / name),
        pytest.raises(InputError, match=rf"{name}: the file is damaged: .*; delete it and run again"),
    ):
        read()


def test_of_several_shards_the_damaged_or_missing_one_is_named_and_it_alone_is_made_again(finished, here, capsys):
    shard = R / "activations/layer=3/shard=0001.npy"
    with Flipped(shard), pytest.raises(InputError, match="1 of"):
        report()
    assert f"{shard} is damaged; make it anew: snakemake --cores 1 --force {shard}" in capsys.readouterr().err
    content, state = shard.read_bytes(), shard.stat()
    shard.unlink()
    try:
        jobs = planned(finished, str(shard), str(R / "activations/layer=3/statistics.json"), config=CONFIG)
        assert jobs == {"extract": 1, "statistics": 1}
    finally:
        shard.write_bytes(content)
        os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_the_rule_names_a_command_that_makes_the_file_anew(finished, here):
    table = R / "report/layers.csv"
    before = pd.read_csv(table)
    with Flipped(table):
        done = snakemake(finished, "verify", config=CONFIG)
        found = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(f"{table} is damaged")]
        assert done.returncode != 0 and found, done.stdout + done.stderr
        command = shlex.split(found[0].partition("make it anew: ")[2])
        assert command[0] == "snakemake"
        again = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        pd.testing.assert_frame_equal(pd.read_csv(table), before)
        report()
