"""What several tests share: small inputs, and one small layer, wholly measured as the workflow's scripts do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch import nn

import sae
from sae import device, extraction, measure, statistics
from sae.evidence import attribution, judge, layer_facts, splice, summary
from sae.latent_codes import Codes
from sae.layer import Layer
from sae.shards import Part
from sae.store import Activations
from sae.training import Source

FAST_INT8 = device.fast_int8(torch.device("cpu"))
NEEDS_INT8 = pytest.mark.skipif(not FAST_INT8, reason="this CPU has no instructions for 8-bit integers")
INT8 = pytest.param("int8", marks=NEEDS_INT8)


def noise(folder: Path, n: int = 40, every: int = 4, **columns: object) -> pd.DataFrame:
    """Writes pixels.npy with n images of noise, and returns their manifest; one of `every` images is held out."""
    rng = np.random.default_rng(0)
    np.save(folder / "pixels.npy", rng.integers(0, 256, (n, 32, 32, 3), np.uint8))
    manifest = pd.DataFrame({"id": range(n), "label": None, "status": "ok", "group": range(n)})
    manifest["sha256"] = [f"{int(h):064x}" for h in rng.integers(2**62, size=n)]
    manifest["split"] = np.where(np.arange(n) % every == 0, "held_out", "train")
    return manifest.assign(**columns)


def coded(z: np.ndarray, ids: Sequence[int] | np.ndarray | None = None, **others: object) -> Codes:
    """Wraps latents [images, tokens, F] as codes whose images are all ranked."""
    n, tokens, latents = z.shape
    z, ids = z.astype(np.float32), np.arange(n) if ids is None else np.asarray(ids)
    images = sparse.csr_array(z.max(1))
    row, latent = images.nonzero()
    places = sparse.csr_array((z[row, :, latent].argmax(1), images.indices, images.indptr), images.shape)
    return Codes(sparse.csr_array(z.reshape(-1, latents)), ids, tokens, images, places, ids, **others)


def latents(points: Mapping[tuple[int, int, str], Sequence[float]], **columns: object) -> pd.DataFrame:
    """Returns the columns of tables of latents that grid points are judged by.

    Args:
        points: (layer, k, method) -> each latent's correlation with its counterpart in another seed.
        columns: in place of those that make every latent alive, frequent and of a confirmed class.
    """
    parts = []
    for point, correlations in points.items():
        part = pd.DataFrame({"partner_correlations": [[c] for c in correlations]})
        part = part.assign(status="alive", image_frequency=0.5, confirmed=True, top_mcc=0.5, seed=0)
        parts.append(part.assign(**dict(zip(("layer", "k", "method"), point, strict=True))))
    return pd.concat(parts, ignore_index=True).assign(**columns)


def summaries(
    values: Mapping[str, float], measure: str = "concept_recovery", layer: int = 1, k: int = 4, seed: int = 0
) -> pd.DataFrame:
    """Returns the summary of one measure for these methods: method -> value, with draws around it."""
    rng, parts = np.random.default_rng(0), []
    for method, value in values.items():
        part = summary.table({measure: (value, value + 0.01 * rng.standard_normal(200), 10)})
        parts.append(part.assign(layer=layer, k=k, seed=seed, method=method))
    return pd.concat(parts, ignore_index=True)


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
    used = manifest.loc[manifest["status"] == "ok", "id"]
    extraction.extract(vit, folder / "pixels.npy", [Part(shard, used)], number)
    train = manifest.loc[(manifest["status"] == "ok") & (manifest["split"] == "train"), "id"]
    facts = statistics.of_tokens([shard], tokens, train)
    here = Layer([shard], manifest, extraction.describe(vit, manifest, ids, seen["logits"]), facts)
    slopes = attribution.gradients(vit, here.tokens("all", here.sample), number, here.selected, *here.centre)
    return measure.Setup(
        here, layer_facts.compute(here, vit, number, size, 16), vit, seen["logits"], slopes, 16, **options
    )


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
    one = judge.Dictionary(
        seed, saes[seed].W_dec.cpu().numpy(), measured.codes, measured.responses, measured.attributions
    )
    others = {
        other: judge.Dictionary(other, m.W_dec.cpu().numpy(), measure.encode(m, sample_tokens(given)))
        for other, m in saes.items()
        if other != seed
    }
    embedding = np.random.default_rng(1).standard_normal((len(here.ranked), 6))
    shown = judge.Images(here.ranked, here.sample, embedding, coverage, here.reference["class_names"])
    tokens = here.statistics["tokens"]
    return measured, judge.judge(one, others, shown, given.facts, here.geometry, tokens, limits)
