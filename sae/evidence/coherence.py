"""Spatial coherence: whether a latent fires on patches that lie together."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse

from sae.latent_codes import Codes

_FEWEST = 3  # patches on which a latent must fire, for a pattern
_IMAGES = 5  # on how many images at least
_AT_ONCE = 64  # images


def coherence(codes: Codes, patches: tuple[int, int]) -> pd.DataFrame:
    """Returns latent, coherence and coherence_images for all latents.

    coherence is Moran's I (Moran 1950) of the activations on an image's patches, with all eight neighbours of a patch
    weighted alike, averaged over the images on which the latent fires on at least 3 patches and not equally on all.
    1: patches are as their neighbours; -1: a chequerboard. Shuffled patches have -1 / (patches - 1) on average,
    whatever the activations are. NaN where fewer than 5 images count, or without patches.

    Args:
        codes: of the images; their last tokens are the patches, row by row.
        patches: rows and columns.
    """
    count, latents = patches[0] * patches[1], codes.latents
    total, images = np.zeros(latents), np.zeros(latents, np.int64)
    if codes.tokens >= count > 1:
        codes, weights = codes.last(count), _neighbours(patches)
        degree = np.asarray(weights.sum(0)).ravel()
        for first in range(0, len(codes.ids), _AT_ONCE):
            z = codes.z[first * count : (first + _AT_ONCE) * count].astype(np.float64)
            some = z.shape[0] // count
            image = np.repeat(np.arange(some), count)
            pool = sparse.csr_array((np.ones(len(image)), (image, np.arange(len(image)))), (some, len(image)))
            beside = z.multiply(sparse.kron(sparse.eye_array(some), weights, format="csr") @ z)
            fires, mean = (pool @ (z > 0)).toarray(), (pool @ z).toarray() / count
            by_degree = (pool @ z.multiply(np.tile(degree, some)[:, None])).toarray()
            spread = (pool @ z.multiply(z)).toarray() - count * mean**2
            # Σ w (x_p - mean)(x_q - mean), without a dense array of patches.
            along = (pool @ beside).toarray() - 2 * mean * by_degree + mean**2 * degree.sum()
            valid = (fires >= _FEWEST) & (spread > 1e-9 * np.maximum(mean**2, 1e-30))
            total += np.where(valid, along / np.where(valid, spread, 1), 0).sum(0) * count / degree.sum()
            images += valid.sum(0)
    value = np.where(images >= _IMAGES, total / np.maximum(images, 1), np.nan)
    return pd.DataFrame({"latent": np.arange(latents), "coherence": value, "coherence_images": images})


def _neighbours(patches: tuple[int, int]) -> sparse.csr_array:
    """Returns which patches touch, also by a corner: 0 or 1, [patches, patches]."""
    row, column = np.divmod(np.arange(patches[0] * patches[1]), patches[1])
    far = np.maximum(abs(row[:, None] - row), abs(column[:, None] - column))
    return sparse.csr_array((far == 1).astype(np.float64))
