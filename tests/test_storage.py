"""The whole workflow without a shared filesystem: all files go through a storage provider, as through a bucket."""

import importlib.util
import shutil

import pandas as pd
import pytest
from conftest import planned, snakemake

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("snakemake_storage_plugin_fs") is None,
        reason="not installed: snakemake-storage-plugin-fs",
    ),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="not installed: rsync"),
]
CONFIG = {
    "name": "small",
    "concepts": {"count": 60},
    "shards": 2,
    "grid": {"layers": [3, 5], "ks": [4], "methods": ["topk"], "baselines": ["pca"]},
    "sae": {"expansion": 1},
    "training": {"epochs": 1, "batch": 256},
    "ranking": {"support": 4},
    "evidence": {"latents": 2, "images": 2},
}
POINT = "layer=3/k=4/method=topk/seed=0"
# Machines share the workflow and what Snakemake knows about the run, but neither results nor local copies of them.
APART = ["all", "export", "--default-storage-provider", "fs", "--default-storage-prefix", "bucket"]
APART += ["--shared-fs-usage", "persistence", "software-deployment", "sources", "source-cache"]


def test_all_results_go_through_a_storage_provider(tmp_path):
    done = snakemake(tmp_path, *APART, config=CONFIG)
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "bucket/results/small"
    assert not (tmp_path / "results").exists()
    for path in (
        *("explorer/index.html", "explorer/pictures/0.webp", f"explorer/data/{POINT}/table.js"),
        *("concepts/images/00007.png", f"sae/{POINT}/training.csv", f"export/{POINT}/README.md"),
        *(f"logs/train/{POINT}.log", f"report/{POINT}/latents.svg", "report/conclusion.html"),
    ):
        assert (results / path).stat().st_size > 0, path
    assert len(pd.read_csv(results / "report/layers.csv")) == 4
    assert not list(tmp_path.rglob("receipts"))
    assert planned(tmp_path, *APART, config=CONFIG) == {}
