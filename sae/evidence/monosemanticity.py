"""The monosemanticity score: the similarity of the images on which a latent fires, in time linear in the images.

The score is of Pach et al. 2025 (arXiv 2504.02821), its linear form of Nasiri-Sarvi et al. 2026 (arXiv 2602.12403).
The embedding must not come from the layer under study: a latent would be judged by itself.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


def monosemanticity(a: sparse.csr_array, e: np.ndarray) -> np.ndarray:
    """Mean cosine of the embeddings of two different images, weighted by the latent's activations: [F], float64.

    Σ_{i≠j} a_i a_j <e_i, e_j> / Σ_{i≠j} a_i a_j  =  (‖Σ a_i e_i‖² - Σ a_i²‖e_i‖²) / ((Σ a_i)² - Σ a_i²)

    1: its images are identical; about 0: as different as any two images. A latent that fires on many kinds of images
    has a low score even if the score is far above chance, see `chance`.

    The e_i are centred at the mean over all images and then made unit vectors. The papers do not centre. But embeddings
    often share a large mean direction, which makes any two images similar, so that a latent that fires at random gets a
    high score. Centred, chance is about 0 whatever the embedding, and scores are lower than published ones. The papers
    scale a to [0, 1] for each latent; a factor changes nothing here, and their lower end is 0 too unless a latent fires
    on every image.

    Args:
        a: image-level activations [n, F], none below 0, such as `Codes.images`.
        e: embeddings of the same images [n, D], in any units.

    Returns:
        NaN for a latent that fires on fewer than two images.
    """
    e = _directions(e)
    powers = _powers(a)
    # ‖e_i‖² is 1, or 0 for an image exactly at the mean.
    own = a.astype(np.float64).power(2).T @ (e * e).sum(1)
    together = np.square(a.T.astype(np.float64) @ e).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(_pairs(a), (together - own) / (powers[0] ** 2 - powers[1]), np.nan)


def chance(a: sparse.csr_array, e: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean (of any latent) and standard deviation ([F], float64) of the score over all orders of the images.

    Exact and without draws: z = (score - mean) / deviation. The more images a latent fires on, the smaller the
    deviation. The mean is that of the cosine over all pairs of different images. The variance is that of Mantel's
    statistic Σ_{i≠j} A_ij B_ij under permutation (Mantel 1967, Cancer Research 27), with A_ij = a_i a_j and
    B_ij = <e_i, e_j>: all sums it needs are sums over images, as A has rank one and B rank D. It is wide and skewed for
    a latent that fires on few images: there z is no normal deviate. NaN as in `monosemanticity`, and below 4 images.
    """
    e = _directions(e)
    n = len(e)
    s1, s2, s3, s4 = _powers(a)
    lengths = (e * e).sum(1)
    rows = e @ e.sum(0) - lengths
    # Sums over i≠j of the entries, of their squares, and over i of the squared row sums: of B, then of A.
    b_sum, b_squares, b_rows = rows.sum(), np.square(e.T @ e).sum() - np.square(lengths).sum(), np.square(rows).sum()
    a_sum, a_squares, a_rows = s1**2 - s2, s2**2 - s4, s1**2 * s2 - 2 * s1 * s3 + s4
    mean = b_sum / (n * (n - 1))
    if n < 4:
        return mean, np.full(a.shape[1], np.nan)
    # Pairs of entries that share both places, one place, or none; the pairs with none are the rest of the square.
    one_a, one_b = a_rows - a_squares, b_rows - b_squares
    none_a, none_b = a_sum**2 - 2 * a_squares - 4 * one_a, b_sum**2 - 2 * b_squares - 4 * one_b
    square = 2 * a_squares * b_squares / (n * (n - 1))
    square = square + 4 * one_a * one_b / (n * (n - 1) * (n - 2))
    square = square + none_a * none_b / (n * (n - 1) * (n - 2) * (n - 3))
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = square / a_sum**2 - mean**2
        return mean, np.where(_pairs(a), np.sqrt(np.maximum(variance, 0)), np.nan)


def _directions(e: np.ndarray) -> np.ndarray:
    """Embeddings [n, D] -> unit vectors from their mean, float64; an image at the mean itself stays 0."""
    e = np.asarray(e, np.float64)
    centred = e - e.mean(0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    rounding = 1e-12 * np.linalg.norm(e, axis=1).max()
    return centred / np.where(lengths > rounding, lengths, np.inf)


def _powers(a: sparse.csr_array) -> list[np.ndarray]:
    """Returns Σ a, Σ a², Σ a³ and Σ a⁴ over the images, float64 [F] each."""
    return [np.bincount(a.indices, a.data.astype(np.float64) ** power, a.shape[1]) for power in (1, 2, 3, 4)]


def _pairs(a: sparse.csr_array) -> np.ndarray:
    """Returns which latents fire on at least two images, bool [F]."""
    return np.bincount(a.indices, minlength=a.shape[1]) > 1
