"""The response of latents to one factor of the built-in images at a time.

The drawer makes pairs of images that differ in exactly one factor, such as the colour of the object, down to the noise
on every pixel. A latent that stands for one factor changes within pairs of that factor and hardly within others; a
direction that mixes factors changes within all. The share of a latent's change that its own factor causes, 1 / factors
by chance where all factors change a token equally, tells trained dictionaries from untrained ones (the idea: arXiv
2606.24716).

A latent's own factor is chosen on every other pair, and its share is measured on the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from sae import concepts
from sae.evidence import summary

if TYPE_CHECKING:
    from torch import nn

    from sae.autoencoder import SparseAutoencoder

PAIRS = 40  # of each factor


def tokens(
    vit: nn.Module,
    layer: int,
    chosen: slice,
    see: Callable[[Image.Image], np.ndarray],
    seed: int,
    count: int = PAIRS,
    batch: int = 64,
) -> np.ndarray:
    """Returns the tokens after block `layer` of drawn pairs, float16 [factors, count, 2, tokens, d].

    Args:
        chosen: the tokens that the dictionaries read.
        see: the ViT's resizing and cropping, see `vit.pixel_transform`.
        seed: of the drawings.
    """
    import torch

    from sae import vit as vits

    drawn = (
        concept.image for factor in concepts.FACTORS for i in range(count) for concept in concepts.pair(seed, i, factor)
    )
    pixels = np.stack([see(Image.fromarray(image)) for image in drawn]).transpose(0, 2, 3, 1)
    prepare, parts = vits.normalise(vit), []
    with torch.inference_mode():
        for first in range(0, len(pixels), batch):
            read = vits.read(vit, prepare(pixels[first : first + batch]), layer)[:, chosen]
            parts.append(read.half().cpu().numpy())
    found = np.concatenate(parts)
    return found.reshape(len(concepts.FACTORS), count, 2, *found.shape[1:])


def changes(model: SparseAutoencoder, pairs: np.ndarray) -> np.ndarray:
    """Returns how much the strongest activation of each latent changes within pairs, float32 [factors, pairs, F].

    Args:
        pairs: [factors, pairs, 2, tokens, d], see `tokens`.
    """
    strongest = np.empty((*pairs.shape[:3], model.config.latents), np.float32)
    for factor, images in enumerate(pairs):
        z = model.encode(images.reshape(-1, pairs.shape[-1]).astype(np.float32))
        strongest[factor] = z.reshape(*images.shape[:3], -1).max(2)
    return abs(strongest[:, :, 0] - strongest[:, :, 1])


def table(change: np.ndarray) -> pd.DataFrame:
    """Returns latent, factor (its own) and factor_share; None and NaN for a latent that never changes.

    Args:
        change: [factors, pairs, F], see `changes`.
    """
    own = _own(change)
    share = _share(change[:, 1::2].mean(1), own)
    names = np.array([*concepts.FACTORS], object)[own]
    names[np.isnan(share)] = None
    return pd.DataFrame({"latent": np.arange(change.shape[2]), "factor": names, "factor_share": share})


def summarised(change: np.ndarray) -> tuple[float, np.ndarray, int]:
    """Returns the mean share over latents, its draws with other pairs, and the number of latents; see `summary`."""
    own, others = _own(change), change[:, 1::2]
    share = _share(others.mean(1), own)
    drawn = np.array([_mean(_share(w @ others, own)) for w in summary.weights(others.shape[1])])
    return _mean(share), drawn, int(np.isfinite(share).sum())


def _own(change: np.ndarray) -> np.ndarray:
    """Returns the factor that changes each latent most on every other pair, int64 [F]."""
    return change[:, ::2].mean(1).argmax(0)


def _share(mean: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Returns the share of a latent's change, [factors, F], that its own factor causes; NaN where there is none."""
    total = mean.sum(0)
    return np.divide(mean[own, np.arange(len(own))], total, out=np.full(len(own), np.nan), where=total > 0)


def _mean(share: np.ndarray) -> float:
    known = share[np.isfinite(share)]
    return float(known.mean()) if len(known) else np.nan
