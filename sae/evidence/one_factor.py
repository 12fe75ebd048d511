"""The response of latents to one factor of the built-in images at a time.

The drawer makes pairs of images that differ in exactly one factor, such as the colour of the object, down to the noise
on every pixel. A latent that stands for one factor changes within pairs of that factor and hardly within others; a
direction that mixes factors changes within all. The share of a latent's change that its own factor causes, 1 / factors
by chance where all factors change a token equally, tells trained dictionaries from untrained ones (the idea: arXiv
2606.24716).

A latent's own factor is chosen on every other pair, and its share is measured on the rest. Pair i of every factor
starts from the same image, so that pairs are drawn again together for intervals.
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
    """Returns the tokens after block `layer` of drawn images, [count, 1 + factors, tokens, d].

    Each image is followed by those that differ from it in one factor. The tokens are float16, or float32 where one
    exceeds float16's range.

    Args:
        chosen: the tokens that the dictionaries read.
        see: the ViT's resizing and cropping, see `vit.pixel_transform`.
        seed: of the drawings.
    """
    import torch

    from sae import vit as vits

    drawn = (concepts.variants(seed, i) for i in range(count))
    images = (concept.image for first, others in drawn for concept in (first, *others.values()))
    pixels = np.stack([see(Image.fromarray(image)) for image in images]).transpose(0, 2, 3, 1)
    prepare, parts = vits.normalise(vit), []
    with torch.inference_mode():
        for first in range(0, len(pixels), batch):
            read = vits.read(vit, prepare(pixels[first : first + batch]), layer)[:, chosen]
            parts.append(read.float().cpu().numpy())
    found = np.concatenate(parts)
    low = found.astype(np.float16)
    found = low if np.isfinite(low).all() else found
    return found.reshape(count, 1 + len(concepts.FACTORS), *found.shape[1:])


def changes(model: SparseAutoencoder, pairs: np.ndarray) -> np.ndarray:
    """Returns how much the strongest activation of each latent changes within pairs, float32 [factors, pairs, F].

    Args:
        pairs: [pairs, 1 + factors, tokens, d], see `tokens`.
    """
    found = np.empty((pairs.shape[1] - 1, len(pairs), model.config.latents), np.float32)
    for place, images in enumerate(pairs):
        z = model.encode(images.reshape(-1, images.shape[-1]).astype(np.float32))
        strongest = z.reshape(*images.shape[:2], -1).max(1)
        found[:, place] = abs(strongest[1:] - strongest[0])
    return found


def table(change: np.ndarray | None, latents: int) -> pd.DataFrame:
    """Returns latent, factor (its own), factor_share, and factor_pairs: within how many pairs of its factor it changes.

    Factor and share are missing for a latent that does not change in both halves of the pairs; all is missing without
    pairs.

    Args:
        change: [factors, pairs, F], see `changes`; None for images without known factors.
        latents: F.
    """
    if change is None:
        unknown = {"factor": None, "factor_share": np.nan, "factor_pairs": pd.NA}
        return pd.DataFrame({"latent": np.arange(latents)}).assign(**unknown).astype({"factor_pairs": "Int64"})
    own = _own(change)
    share = _share(change[:, 1::2].mean(1), own)
    names = np.array([*concepts.FACTORS], object)[own]
    names[np.isnan(share)] = None
    latent = np.arange(latents)
    pairs = pd.array((change[own, :, latent] > 0).sum(1), "Int64")
    return pd.DataFrame({"latent": latent, "factor": names, "factor_share": share, "factor_pairs": pairs})


def summarised(change: np.ndarray) -> tuple[float, np.ndarray, int]:
    """Returns the mean share over latents, its draws with other pairs, and the number of latents; see `summary`."""
    own, others = _own(change), change[:, 1::2]
    share = _share(others.mean(1), own)
    drawn = np.array([_mean(_share(w @ others, own)) for w in summary.weights(others.shape[1])])
    return _mean(share), drawn, int(np.isfinite(share).sum())


def _own(change: np.ndarray) -> np.ndarray:
    """Returns the factor that changes each latent most on every other pair, int64 [F]; -1 where none changes it."""
    mean = change[:, ::2].mean(1)
    return np.where(mean.any(0), mean.argmax(0), -1)


def _share(mean: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Returns the share of a latent's change, [factors, F], that its own factor causes; NaN where there is none."""
    total = mean.sum(0)
    known = (total > 0) & (own >= 0)
    return np.divide(mean[own, np.arange(len(own))], total, out=np.full(len(own), np.nan), where=known)


def _mean(share: np.ndarray) -> float:
    known = share[np.isfinite(share)]
    return float(known.mean()) if len(known) else np.nan
