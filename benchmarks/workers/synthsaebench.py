"""SynthSAEBench-16k's tokens and its metrics, by the package that defines them (SAELens).

    python workers/synthsaebench.py draw settings.json    # model, train.npy, held_out.npy, truth.npy
    python workers/synthsaebench.py judge settings.json   # metrics.json of one trained SAE

The published model (decoderesearch/synth-sae-bench-16k-v2) is built anew from its published configuration and seed, so
that nothing has to be fetched. Building it takes half an hour on two cores; it is kept on disk.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.synthetic import (
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
    feature_uniqueness,
    mean_correlation_coefficient,
)
from sae_lens.synthetic.evals import ClassificationMetricsCalculator

_BLOCK = 4096  # tokens drawn or judged at a time
_CACHED = 256  # of those drawn: their features fit into a core's cache, which is nearly twice as fast
_CONFIG = SyntheticModelConfig(
    num_features=16_384,
    hidden_dim=768,
    firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
    hierarchy=HierarchyConfig(
        total_root_nodes=128,
        branching_factor=4,
        max_depth=3,
        mutually_exclusive_portion=1.0,
        mutually_exclusive_min_depth=0,
        compensate_probabilities=True,
        scale_children_by_parent=True,
    ),
    orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
    correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
    mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
    std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
    bias=0.5,
    seed=42,
)


def draw(folder: Path, rows: int, held_out: int, seed: int, processes: int) -> None:
    """Writes train.npy (float16, for half the memory), held_out.npy (float32) and truth.npy (8 features in a byte)."""
    place = folder.parent / "synthsaebench-16k"
    _model(place)
    truth = np.empty((held_out, _CONFIG.num_features // 8), np.uint8)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for number, (name, count, kind) in enumerate((("held_out", held_out, "f4"), ("train", rows, "f2"))):
            part = folder / f"{name}.part.npy"
            out = np.lib.format.open_memmap(part, "w+", kind, (count, _CONFIG.hidden_dim))
            starts = range(0, count, _BLOCK)
            seeds = [int(s) for s in np.random.SeedSequence([seed, number]).generate_state(len(starts))]
            sizes = [min(_BLOCK, count - first) for first in starts]
            drawn = pool.map(_drawn, repeat(place), repeat(kind), seeds, sizes)
            for first, (tokens, fires) in zip(starts, drawn, strict=True):
                out[first : first + len(tokens)] = tokens
                if name == "held_out":
                    truth[first : first + len(tokens)] = fires
            out.flush()
            np.save(folder / "truth.npy", truth)
            part.rename(folder / f"{name}.npy")


@torch.no_grad()
def _drawn(place: Path, kind: str, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens [count, d] and which features fire, in bits."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = _model(place)
    parts = []
    for first in range(0, count, _CACHED):
        features = model.activation_generator.sample(min(_CACHED, count - first))
        # What feature_dict(features) does, without multiplying by zeros.
        tokens = features.to_sparse_csr() @ model.feature_dict.feature_vectors + model.feature_dict.bias
        parts.append((tokens.numpy().astype(kind), np.packbits((features > 0).numpy(), axis=1)))
    tokens, fires = zip(*parts, strict=True)
    return np.concatenate(tokens), np.concatenate(fires)


@torch.no_grad()
def judge(data: Path, run: Path) -> None:
    """Writes metrics.json of the SAE whose decoder, active latents and reconstructions lie in `run`."""
    features = _model(data.parent / "synthsaebench-16k").feature_dict.feature_vectors
    decoder = torch.from_numpy(np.load(run / "decoder.npy"))
    x, x_hat, truth, active = (
        np.load(file, mmap_mode="r")
        for file in (data / "held_out.npy", run / "x_hat.npy", data / "truth.npy", run / "active.npy")
    )
    detection, variance = ClassificationMetricsCalculator(decoder, features), ExplainedVarianceCalculator()
    for first in range(0, len(x), _BLOCK):
        block = slice(first, first + _BLOCK)
        variance.add_batch(torch.from_numpy(x_hat[block]), torch.from_numpy(x[block]))
        latents, fires = (
            torch.from_numpy(np.unpackbits(bits[block], axis=1, count=len(rows)))
            for bits, rows in ((active, decoder), (truth, features))
        )
        detection.add_batch(latents, fires)
    found = detection.compute()
    metrics = {
        "mcc": mean_correlation_coefficient(decoder, features),
        "f1": found.f1_score,
        "precision": found.precision,
        "recall": found.recall,
        "uniqueness": feature_uniqueness(decoder, features),
        "explained_variance": variance.compute(),
    }
    (run / "metrics.json").write_text(json.dumps(metrics))


@cache
def _model(folder: Path) -> SyntheticModel:
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part{os.getpid()}")
        SyntheticModel(_CONFIG, device="cpu").save(part)
        part.rename(folder)
    return SyntheticModel.load_from_disk(folder)


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(settings["threads"])
    data = Path(settings["data"])
    if sys.argv[1] == "draw":
        draw(data, settings["rows"], settings["held_out"], settings["seed"], settings["threads"])
    else:
        judge(data, Path(settings["run"]))
