"""The workflow on images that a user brings, and on mistakes that end before anything is made."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, picture, planned, snakemake


def test_the_flow_works_on_a_folder_with_troubles(tmp_path):
    """Nested classes, a broken file, a duplicate, a class with one image; several shards; two of all tokens; another
    model."""
    folder = tmp_path / "my images"
    for i in range(24):
        picture(folder / "animals" / ("cat" if i % 2 else "dog") / f"{i}.jpg", seed=i, size=(50 + i, 40))
    picture(folder / "<img src=x onerror=alert(1)>" / "one.png", seed=100)
    shutil.copy(folder / "animals/cat/1.jpg", folder / "again.jpg")
    (folder / "broken.png").write_bytes(b"no image")
    config = {
        "name": "own",
        "images": str(folder),
        "shards": 2,
        "model": {"name": "deit_tiny_distilled_patch16_224", "checkpoint": "random", "image_size": 64},
        "tokens": "all",
        "limits": {"tokens_per_image": 2},
        "grid": {"layers": [11], "ks": [4], "baselines": []},
        "evidence": {"embedding": {"name": "vit_tiny_concepts"}},  # another model, of another input size
        "sae": {"expansion": 0.5, "input": "layernorm", "decoder": "start"},
        "training": {
            "epochs": 1,
            "batch": 5,
            "whole_images": True,
            "lr": 0.002,
            "lr_per_epoch": 0.7,
            "auxk": 0,
            "clip": None,
        },
    }
    work = tmp_path / "work"
    point = "layer=11/k=4/method=topk/seed=0"
    wanted = [f"results/own/{path}" for path in (f"metrics/{point}.parquet", f"evidence/{point}/summary.parquet")]
    wanted.append(f"results/own/report/{point}/latents.svg")
    done = snakemake(work, *wanted, config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all((work / path).stat().st_size for path in wanted)
    manifest = pd.read_parquet(work / "results/own/manifest.parquet").set_index("path")
    assert manifest["status"].value_counts().to_dict() == {"ok": 25, "duplicate": 1, "broken": 1}
    assert "broken.png: broken" in (work / "results/own/logs/manifest.log").read_text()
    layer = work / "results/own/activations/layer=11"
    stored = [sum(len(np.load(path)) for path in layer.glob(f"{kind}=*.npy")) for kind in ("shard", "train")]
    assert stored == [25, ((manifest["status"] == "ok") & (manifest["split"] == "train")).sum()]
    assert json.loads((layer / "statistics.json").read_text())["rows"] == 2 * stored[1]
    images = pd.read_parquet(work / f"results/own/ranking/{point}/images.parquet")
    assert images["token_row"].between(-1, 3).all()  # class and distillation tokens stand at -1, patches in 4 x 4
    assert images["image_id"].isin(manifest.loc[manifest["status"] == "ok", "id"]).all()

    assert planned(work, *wanted, config=config) == {}
    picture(folder / "animals/cat/new.jpg", seed=400)  # a new image is noticed
    jobs = planned(work, *wanted, config=config)
    assert jobs["images"] == 1 and jobs["extract"] == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"trainning": {}}, "error: config key trainning: there is no such key; did you mean training?"),
        # Only the built-in images take the settings of config.yaml.
        ({"name": "x", "images": "/none"}, "error: config key grid: is missing. "),
    ],
)
def test_mistakes_in_the_config_end_before_anything_is_made(tmp_path, config, message):
    done = snakemake(tmp_path, config=config)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "results").exists()


def test_snakemake_finds_nothing_to_complain_about():
    command = [sys.executable, "-m", "snakemake", "--lint"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Congratulations" in done.stderr + done.stdout


def test_a_stranger_can_read_the_graph(tmp_path):
    done = snakemake(tmp_path, "--rulegraph")
    assert done.returncode == 0
    for rule in ("manifest", "pixels", "extract", "statistics", "train", "measure", "layer", "evidence", "baselines"):
        assert f'"{rule}"' in done.stdout
