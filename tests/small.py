"""One small layer, wholly measured, from pixels to tables: what the workflow's scripts do with files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

import sae
from sae import extraction, layer, measure
from sae.activations import Activations
from sae.evidence import judge, splice
from sae.layer import Layer
from sae.training import Source


def setup(
    folder: Path,
    vit: nn.Module,
    manifest: pd.DataFrame,
    number: int,
    tokens: str,
    size: int,
    sample: int = 100,
    **options: object,
) -> measure.Setup:
    """Extracts layer `number` of all used images of folder/pixels.npy and computes its facts."""
    manifest = manifest.assign(path=[f"{i}.png" for i in manifest["id"]])
    ids = splice.sample(manifest, sample)
    seen = extraction.reference(vit, [folder / "pixels.npy"], manifest, ids)
    shard = folder / f"layer={number}.npy"
    extraction.extract(vit, folder / "pixels.npy", manifest.loc[manifest["status"] == "ok", "id"], number, shard)
    train = manifest.loc[(manifest["status"] == "ok") & (manifest["split"] == "train"), "id"]
    statistics = layer.statistics([shard], tokens, train)
    here = Layer([shard], manifest, extraction.describe(vit, manifest, ids, seen.logits), statistics)
    return measure.Setup(here, layer.facts(here, vit, number, size, 16), vit, seen.logits, 16, **options)


def train(given: measure.Setup, number: int, config: sae.TrainConfig, seed: int) -> sae.SparseAutoencoder:
    x = given.layer.tokens(given.layer.statistics["tokens"], given.layer.train)
    source = Source(number, given.layer.statistics["tokens"], given.layer.statistics)
    return sae.train(x, config, seed=seed, source=source)


def sample_tokens(given: measure.Setup) -> Activations:
    return given.layer.tokens(given.layer.statistics["tokens"], given.layer.sample)


def judged(
    given: measure.Setup,
    saes: Mapping[int, sae.SparseAutoencoder],
    seed: int,
    limits: judge.Limits,
    coverage: np.ndarray | None = None,
) -> tuple[measure.Measured, dict[str, pd.DataFrame]]:
    """Measures the dictionary of `seed` and gathers its evidence; the other seeds are there to compare with."""
    here = given.layer
    measured = measure.measure(saes[seed], given)
    one = judge.Dictionary(seed, saes[seed].W_dec.numpy(), measured.codes, measured.responses)
    others = {
        other: judge.Dictionary(other, m.W_dec.numpy(), measure.encode(m, sample_tokens(given)))
        for other, m in saes.items()
        if other != seed
    }
    embedding = np.random.default_rng(1).standard_normal((len(here.ranked), 6))
    shown = judge.Images(here.ranked, here.sample, embedding, coverage, here.reference["class_names"])
    tokens = here.statistics["tokens"]
    return measured, judge.judge(one, others, shown, given.facts, here.geometry, tokens, limits)
