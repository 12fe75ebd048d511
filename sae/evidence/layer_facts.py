"""All values that depend on a layer but on no dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae import images
from sae.errors import InputError
from sae.evidence import matching, splice
from sae.files import read_arrays, write_arrays
from sae.layer import Layer
from sae.store import moments

_MOST_PROBED = 4000


@dataclass(frozen=True)
class LayerFacts:
    """The values that depend on a layer but on no dictionary.

    Attributes:
        variance: of the ranked held-out tokens by dimension, float64 [d].
        spread: Σ‖x - mean‖² over the tokens of each image of the sample, float64 [m]; the mean is the sample's.
        clean, mean, zero: the ViT's outputs for the sample, float32 [m, outputs], going on from the stored
            activations as they are, with every token replaced by the train set's mean, and by 0.
        null_directions, null_tokens: see `matching.null_stability`, [F]; the latter is empty where there are too few.
    """

    variance: np.ndarray
    spread: np.ndarray
    clean: np.ndarray
    mean: np.ndarray
    zero: np.ndarray
    null_directions: np.ndarray
    null_tokens: np.ndarray

    def save(self, path: str | Path) -> None:
        """Writes layer.safetensors."""
        write_arrays(path, vars(self))

    @classmethod
    def load(cls, path: str | Path) -> LayerFacts:
        """Returns the facts that `save` wrote; raises InputError where the file is damaged."""
        return cls(**read_arrays(path)[0])


def compute(layer: Layer, vit: Any, number: int, latents: int, batch: int) -> LayerFacts:
    """Computes a layer's facts.

    Args:
        vit: the ViT.
        number: of the layer.
        latents: F of the SAEs, for the null of stability.
        batch: images in one forward pass.

    Raises:
        InputError: all held-out tokens are the same.
    """
    kind = layer.statistics["tokens"]
    x = layer.tokens(kind, layer.sample)
    centre = moments(x)[0]
    blocks = (np.square(block.astype(np.float64) - centre).sum((1, 2)) for _ids, block in x.blocks(64))
    spread = np.concatenate([*blocks])
    variance = moments(layer.tokens(kind, layer.held_out))[1]
    if not variance.any() or not spread.any():
        raise InputError(
            f"{layer.shards[0]}: all held-out tokens have the same activation, so no share of their variance can be "
            "measured; raise held_out or evaluation.images, or add images"
        )
    outputs = splice.ablated(vit, layer.tokens("all", layer.sample), number, layer.selected, layer.centre[0], batch)
    train = layer.tokens(kind, layer.train)
    tokens = train.read(np.arange(min(len(train), -(-20 * latents // train.tokens)))).reshape(-1, train.width)
    nulls = matching.null_stability(latents, tokens.astype(np.float32), np.random.default_rng(0))
    return LayerFacts(
        variance=variance,
        spread=spread,
        **outputs,
        null_directions=nulls["random directions"],
        null_tokens=nulls.get("random tokens", np.empty(0)),
    )


def probed(rows: pd.DataFrame) -> np.ndarray:
    """Returns the places of the ranked images that probes read, [n], at most 4,000."""
    return np.flatnonzero(rows["id"].isin(images.sample(rows, _MOST_PROBED)["id"]))


def dense_features(layer: Layer) -> np.ndarray:
    """Returns mean and maximum over each probed image's tokens, float32 [n, 2d]."""
    x = layer.tokens(layer.statistics["tokens"], layer.ranked["id"].to_numpy()[probed(layer.ranked)])
    parts = [np.concatenate([block.astype(np.float32).mean(1), block.max(1)], 1) for _ids, block in x.blocks(256)]
    return np.concatenate(parts).astype(np.float32)
