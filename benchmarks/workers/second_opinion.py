"""visaebench's metrics of one run's dictionaries, and the same probes with one of its choices changed at a time.

python workers/second_opinion.py settings.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from probes import probe
from visaebench.metrics.concept_detection.sparse_probing import SparseProbing
from visaebench.metrics.reconstruction.downstream import DownstreamPreservation
from visaebench.metrics.reconstruction.fvu import FVU
from visaebench.metrics.spatial_coherence.localization import FeatureLocalization

import sae
from sae.evidence import fidelity


class Wrapped:
    """A dictionary that sees standardised tokens, as visaebench gives them."""

    def __init__(self, model: Any, mean: torch.Tensor, std: float):
        self._model, self._mean, self._std = model, mean, std

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self._model.encode(x * self._std + self._mean)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return (self._model.decode(z) - self._mean) / self._std


def opinions(model: Any, x: torch.Tensor, labels: np.ndarray, patches: tuple[int, int], seed: int) -> dict[str, float]:
    """Returns visaebench's four metrics and the changed probes of a dictionary on tokens [images, patches, d]."""
    tokens = x.reshape(-1, x.shape[2])
    mean, std = tokens.mean(0), float(tokens.std())
    wrapped, shared = Wrapped(model, mean, std), {"device": "cpu", "mean": mean, "std": std, "seed": seed}
    flat = ((tokens - mean) / std)[:]
    coherence = FeatureLocalization(grid_size=patches, max_features=10**6, min_images_per_feature=10)
    found = {
        "fvu": FVU().compute(wrapped, flat, device="cpu").value,
        "preservation": DownstreamPreservation().compute(wrapped, x, labels=labels, **shared).value,
        "coherence": coherence.compute(wrapped, x, **shared).value,
        "probing": SparseProbing().compute(wrapped, x, labels=labels, **shared).value,
    }
    with torch.no_grad():
        z = model.encode(tokens).reshape(*x.shape[:2], -1)
        found["our fvu"] = float(fidelity.fvu(tokens.numpy(), model.decode(z.reshape(len(tokens), -1)).numpy()))
    pooled = z.amax(1).numpy()
    mixed = z[:, torch.randperm(z.shape[1], generator=torch.Generator().manual_seed(seed))]
    found["coherence, patches shuffled"] = coherence.compute(_Codes(mixed), x, device="cpu", seed=seed).value
    for name, options in {
        "as they are": {},
        "chosen on train images": {"leak": False},
        "standardised": {"standardise": True},
        "one latent per class in turn": {"in_turn": True},
        "all three": {"leak": False, "standardise": True, "in_turn": True},
    }.items():
        for k, accuracy in probe(pooled, labels, seed, **options).items():
            found[f"probe, {name}, {k}"] = accuracy
    return found


class _Codes:
    """Codes that are known already, for tokens in their order."""

    def __init__(self, z: torch.Tensor):
        self._z, self._place = z.reshape(-1, z.shape[-1]), 0

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:  # only the size is asked for
            return self._z[:1]
        first, self._place = self._place, self._place + len(x)
        return self._z[first : self._place]


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(settings["threads"])
    folder = Path(settings["out"])
    x, labels = torch.from_numpy(np.load(folder / "x.npy")), np.load(folder / "labels.npy")
    model = sae.load(settings["dictionary"])
    found = opinions(model, x, labels, tuple(settings["patches"]), settings["seed"])
    (folder / "result.json").write_text(json.dumps(found, indent=1))
