"""Times all evidence about one SAE against its training, on the results of a finished experiment.

    uv run python benchmarks/evidence.py results/pets --layer 6 --k 32

One thread, one after the other: training with the experiment's own settings (`--epochs` and `--batch` replace them),
then the ranking (top images, classes, roles, stability), then probes, monosemanticity, causes and the summary. Time to
import packages does not count.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import sae
from sae import images, points, vit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder, r = f"layer={asked.layer}/k={asked.k}/method=topk", asked.results
    first, second = (sae.load(path) for path in sorted((r / "sae" / folder).glob("seed=*"))[:2])
    manifest, model = pd.read_parquet(r / "manifest.parquet"), json.loads((r / "model/model.json").read_text())
    here = r / f"activations/layer={asked.layer}"
    statistics = json.loads((here / "statistics.json").read_text())
    layer = points.Layer(sorted(here.glob("*.npy")), manifest, model, statistics)
    settings = json.loads(next((r / "sae" / folder).glob("seed=*/sae.json")).read_text())["provenance"]["settings"]
    network = vit.load(**model["model"])
    images.describe("n02123045")  # imports what it needs
    x = layer.tokens(first.config.tokens, images.used(manifest, images.TRAIN)["id"])

    began = time.perf_counter()
    loop = {name: getattr(asked, name) or settings["training"][name] for name in ("epochs", "batch")}
    trained = sae.train(x, asked.k, first.config.latents, centre=layer.centre, **loop)
    training = time.perf_counter() - began
    began = time.perf_counter()
    ranking = points.ranked(first, {1: second}, 0, layer, 16, 10, 5)
    ranked = time.perf_counter() - began
    began = time.perf_counter()
    alike = points.embedding([str(r / f"embedding/{n}.npy") for n in ("features", "pixels")], None, asked.layer, layer)
    cover = r / "concepts-cover.npy"
    points.gather(first, second, layer, network, ranking, alike, np.load(cover) if cover.exists() else None, 24, 4)
    gathered = time.perf_counter() - began
    print(f"{len(layer.ranked):,} images of {x.tokens} tokens, {first.config.latents:,} latents, one thread")
    print(f"training, {trained.record['tokens']:,} tokens: {training:.1f} s")
    print(f"ranking: {ranked:.1f} s; other evidence: {gathered:.1f} s")
    print(f"both / training: {(ranked + gathered) / training:.2f}")


if __name__ == "__main__":
    main()
