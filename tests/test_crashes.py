"""What `kill -9`, a second run and a full disk do to a run, and how it goes on as docs/how-to/interrupted.md says."""

from __future__ import annotations

import os
import random
import runpy
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from conftest import ROOT, manifest, picture

from sae.files import whole

crash = runpy.run_path(str(ROOT / "benchmarks/crash.py"))
Run, contents = crash["Run"], crash["contents"]


def config(name: str, **parts: object) -> dict:
    return crash["CONFIG"] | {"name": name} | parts


def write(folder: Path, turns: int) -> None:
    for turn in range(turns):
        text = "ab"[turn % 2] * 500_000
        with whole(folder / "file.txt") as part, part.open("w") as file:
            for first in range(0, len(text), 10_000):
                file.write(text[first : first + 10_000])
        with whole(folder / "folder") as part:
            part.mkdir()
            for name in range(20):
                (part / str(name)).write_text(text[:1000])


def test_a_writer_that_is_killed_leaves_whole_files_or_none(tmp_path):
    write(tmp_path, 1)
    rng, seen = random.Random(0), set()
    for _ in range(25):
        writer = os.fork()
        if writer == 0:
            write(tmp_path, 10**9)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        if (file := tmp_path / "file.txt").exists():
            assert file.read_text() in ("a" * 500_000, "b" * 500_000)
        if (folder := tmp_path / "folder").exists():
            assert {path.read_text() for path in folder.iterdir()} <= {"a" * 1000, "b" * 1000}
            assert len(list(folder.iterdir())) == 20
        seen |= {path.name for path in tmp_path.iterdir()}
    assert any(name.endswith(".part") for name in seen)
    write(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "folder"]


def test_a_killed_run_goes_on_to_the_same_results_and_a_second_one_beside_it_is_refused(tmp_path):
    small, rng = config("killed", concepts={"count": 60}), random.Random(3)
    target = "results/killed/manifest.parquet"
    undisturbed, run = (Run(tmp_path / name, small, target) for name in ("undisturbed", "run"))
    status, output = undisturbed.finish()
    assert status == 0, output

    first = run.begin()
    while not run.jobs():
        assert first.poll() is None
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGSTOP)  # it holds the lock as long as this test wants
    status, output = run.finish(output="second.txt")
    assert status == 1
    assert [line for line in output.splitlines() if "error" in line.lower()] == [output.splitlines()[-1]]
    assert output.splitlines()[-1].startswith(f"error: {run.results}: another run makes these results; wait")
    first.kill()
    first.wait()
    run.recover("snakemake")
    assert run.kill("job", rng.uniform(0, 3), rng)
    status, output = run.finish()
    assert status == 0, output
    assert contents(run.results) == contents(undisturbed.results)


@pytest.fixture
def little_disk(tmp_path):
    """A disk of 1.5 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root may mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_after_room_is_made(little_disk, tmp_path):
    for i in range(60):
        picture(tmp_path / "pets" / ("cat" if i % 2 else "dog") / f"{i}.png", seed=i)
    target = "results/full/pixels/shard=0000.npy"
    small = config("full", images=str(tmp_path / "pets"), held_out=0.3, model={"name": "vit_tiny_concepts"})
    run = Run(little_disk, small, target)
    status, output = run.finish()
    line = f"error: {target}: No space left on device; make room, then run the same command again"
    assert status == 1 and line in output.splitlines() and "Traceback" not in output
    assert not list(run.results.glob("pixels/*")) and not list(run.results.glob("pixels/.*"))
    images = run.results / "images.parquet"
    earlier = images.read_bytes(), images.stat().st_mtime_ns
    subprocess.run(["mount", "-o", "remount,size=64m", little_disk], check=True)
    status, output = run.finish()
    assert status == 0, output
    assert earlier == (images.read_bytes(), images.stat().st_mtime_ns)
    assert (run.results / "pixels/shard=0000.npy").stat().st_size == 128 + 60 * 112 * 112 * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else, for whom permissions count")
def test_an_image_without_permission_is_broken_with_a_reason_and_the_folder_may_be_read_only():
    with tempfile.TemporaryDirectory() as folder:
        for i in range(30):
            picture(Path(folder) / f"{i:02d}.png", seed=i)
        manifest(folder, held_out=0.3)  # imports what a stranger may not read
        (Path(folder) / "07.png").chmod(0)
        Path(folder).chmod(0o555)
        os.seteuid(65534)
        try:
            table = manifest(folder, held_out=0.3)
        finally:
            os.seteuid(0)
    broken = table[table["status"] != "ok"]
    assert broken[["path", "status", "reason"]].values.tolist() == [["07.png", "broken", "Permission denied"]]
