"""The forecast of a run, on costs that are known."""

import json
import shutil
from collections import namedtuple

import pandas as pd
import pytest
from conftest import ROOT, picture

from sae import estimate
from sae.config import complete
from sae.errors import InputError
from sae.geometry import Geometry
from sae.verify import write_receipts

GEOMETRY = Geometry(blocks=12, width=192, prefix=("class",), patches=(4, 4), side=(64, 64), outputs=10)


def config(**changed):
    least = {"name": "x", "images": "concepts", "grid": {"layers": [1, 3, 5, 11], "ks": [4, 8, 16]}}
    return complete(least | changed, ROOT / "workflow/schemas/config.schema.yaml")


def cost(images, sample):
    """A small run in which a job of `measure` takes 3 s, .1 s an image and .2 s an image of the sample."""
    rows = [
        ("measure", "1", 3 + 0.1 * images + 0.2 * sample, 600 + images + 5 * sample, 1000 * images + 10),
        ("figure", "1", 2.0, 500, 70),
    ]
    columns = ["rule", "wildcards", "seconds", "peak_mb", "bytes"]
    return estimate.Run(pd.DataFrame(rows, columns=columns), images, sample, 1.5)


def test_each_part_of_the_cost_is_told_apart():
    runs = cost(100, 8), cost(200, 8), cost(200, 48)
    jobs = {"measure": 4, "figure": 9, "unknown": 2}
    found = estimate.forecast(jobs, runs, dict.fromkeys(jobs, 5000), 300, 64).set_index("rule")
    assert found.loc["measure", "seconds"] == pytest.approx(4 * (3 + 500 + 60))
    assert found.loc["measure", "bytes"] == pytest.approx(4 * (1000 * 5000 + 10))
    assert found.loc["measure", "peak_mb"] == pytest.approx(600 + 5000 + 5 * 64, abs=1)
    assert found.loc["figure"].tolist() == [9, 18.0, 630.0, 500.0]
    assert found.loc["unknown", "seconds"] > 0 and found.index[0] == "measure"


def test_a_disturbed_job_does_not_count_for_every_image():
    runs = cost(100, 8), cost(200, 8), cost(200, 48)
    for number, run in enumerate(runs):
        others = run.jobs.loc[[0, 0]].assign(wildcards=["2", "3"])
        others["seconds"] += [60.0 * (number == 1), 0]
        run.jobs.loc[2], run.jobs.loc[3] = others.iloc[0], others.iloc[1]
    found = estimate.forecast({"measure": 3}, runs, {"measure": 5000}, 300, 64)
    assert found.loc[0, "seconds"] == pytest.approx(3 * (3 + 500 + 60))


def test_a_rule_that_reads_no_images_costs_what_it_did():
    found = estimate.forecast({"measure": 1}, (cost(100, 8), cost(200, 8), cost(200, 48)), {}, 300, 64)
    assert found.loc[0, "seconds"] == pytest.approx(3 + 0.1 * 200 + 0.2 * 48)


def test_jobs_are_read_from_the_receipts(tmp_path):
    (tmp_path / "a/folder").mkdir(parents=True)
    for name, size in (("a/one.npy", 100), ("a/folder/two", 30), ("a/folder/three", 4), ("b", 5)):
        (tmp_path / name).write_bytes(bytes(size))
    facts = {"rule": "extract", "wildcards": {"layer": "1"}, "started": "now", "seconds": 1.5, "peak_memory_mb": 70}
    write_receipts([str(tmp_path / "a/one.npy"), str(tmp_path / "a/folder")], tmp_path, facts)
    write_receipts([str(tmp_path / "b")], tmp_path, facts | {"wildcards": {"layer": "2"}, "seconds": 2.5})
    found = estimate.read(tmp_path)
    receipts = sum(path.stat().st_size for path in (tmp_path / "receipts").rglob("*.json"))
    assert found["seconds"].tolist() == [1.5, 2.5] and {*found["rule"]} == {"extract"}
    assert found["bytes"].sum() == 139 + receipts and {*found["peak_mb"]} == {70}


def test_small_runs_are_of_the_same_kind():
    make = estimate.smaller(config(training={"batch": 4096}), GEOMETRY)
    first, images, sample = make(1, 1), make(2, 1), make(2, 3)
    assert first["grid"]["layers"] == [3, 5] and first["grid"]["ks"] == [8]
    assert first["grid"]["baselines"] == config()["grid"]["baselines"]
    assert images["concepts"]["count"] == sample["concepts"]["count"] == 2 * first["concepts"]["count"]
    assert sample["evaluation"]["images"] == 3 * first["evaluation"]["images"]
    assert first["concepts"]["count"] * 16 > 2 * 192 * 16 - 16  # k-means needs a token for each latent
    assert first["training"]["batch"] <= first["concepts"]["count"] * 16 // 2
    of_own = estimate.smaller(config(images="pets", labels=None, grid={"layers": [2], "ks": [4]}), GEOMETRY)(1, 1)
    assert of_own["grid"]["layers"] == [2] and of_own["limits"]["images"] == 384


def test_the_limits_and_the_disk_are_heeded(tmp_path, monkeypatch):
    folder = tmp_path / "pets"
    for i in range(30):
        picture(folder / "cat" / f"{i}.png", seed=i, size=(20, 20))
    runs = iter([cost(100, 8), cost(200, 8), cost(200, 48)])
    monkeypatch.setattr(estimate, "run", lambda *_: next(runs))
    monkeypatch.setattr(estimate, "planned", lambda *_: {"measure": 2})
    asked = config(images=str(folder), limits={"images": 25, "tokens_per_image": 3})
    told = estimate.estimate(asked, GEOMETRY, tmp_path / "results/x", 2)
    assert "25 images, 75 tokens a layer; 2 jobs" in told and "measure" in told
    assert "about 8 s with 2 cores" in told  # (2 jobs of 3 + .1 · 25 + .2 · 5 s, and 1.5 s between two) / 2

    assert "shards" not in told

    runs = iter([cost(100, 8), cost(200, 8), cost(200, 48)])
    told = estimate.estimate(asked | {"shards": 3}, GEOMETRY, tmp_path / "results/x", 2)
    assert told.endswith("better with shards: 1, one per 10,000 images")

    runs = iter([cost(100, 8), cost(200, 8), cost(200, 48)])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1, 1, 40_000))
    with pytest.raises(InputError, match=r"needs about 50 kB of disk, and 40 kB are free"):
        estimate.estimate(asked, GEOMETRY, tmp_path / "results/x", 2)
    monkeypatch.setattr(estimate, "planned", lambda *_: {})
    assert "nothing left" in estimate.estimate(asked, GEOMETRY, tmp_path / "results/x", 2)


def test_the_planned_jobs_are_those_of_the_configuration(tmp_path):
    asked = config(grid={"layers": [1, 3], "ks": [4], "baselines": []})
    found = estimate.planned(json.loads(json.dumps(asked)), tmp_path)
    assert found["extract"] == 2 and found["train"] == 4 and "all" not in found
    with pytest.raises(InputError, match="no such folder"):
        estimate.planned(config(images=str(tmp_path / "none")), tmp_path)


def test_paths_hold_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = estimate._absolute(config(images="pets", labels="l.csv", model={"checkpoint": "w.pth"}))
    assert [made["images"], made["labels"], made["model"]["checkpoint"]] == [
        str(tmp_path / name) for name in ("pets", "l.csv", "w.pth")
    ]
    assert estimate._absolute(config(model={"checkpoint": "random"}))["model"]["checkpoint"] == "random"
