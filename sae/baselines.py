"""Baselines: simple dictionaries in the form of a `SparseAutoencoder`, so that all measures treat them like SAEs.

    neurons   the residual stream's own dimensions, each with both signs: 2d latents
    pca       the principal components, each with both signs: 2d latents
    ica       the independent components (FastICA of scikit-learn), each with both signs: 2d latents
    kmeans    directions from the mean to the centres of F clusters (KMeans of scikit-learn, k-means++ start)
    random    F directions from a unit Gaussian
    sampled   directions from the mean to F tokens of the train set
    frozen, soft_frozen, frozen_encoder    TopK SAEs with weights that are not trained; made by `training`

Directions w_i of norm 1 encode and decode: z = c · ReLU(the k largest of W x̃) and x̂ = z W. One number c minimises the
squared error on train tokens (1 if the directions are orthogonal). Only ica differs, as its components are not
orthogonal: rows of the unmixing matrix encode, and columns of the mixing matrix, its inverse, decode. The directions
depend on layer and seed; only c depends on k. Sources: neurons, ica and random dictionaries, Sharkey et al. 2022
(Taking features out of superposition) and Bricken et al. 2023 (Towards Monosemanticity); the frozen ones, and random
ones against trained SAEs, arXiv 2602.14111.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from sae.clusters import centres, standardised_sample
from sae.errors import InputError
from sae.store import Activations

if TYPE_CHECKING:
    from sae.autoencoder import SparseAutoencoder

# Those that this module makes. The place of each seeds its draws: append only.
COMPUTED = ("neurons", "pca", "kmeans", "random", "sampled", "ica")
ORTHONORMAL = ("neurons", "pca")  # their directions are orthogonal to each other but for the signs
_ICA_TOKENS = 20_000  # at most: FastICA takes three times as long with twice as many


def directions(
    x: Activations, latents: int, method: str, centre: tuple[np.ndarray, float], seed: int = 0
) -> np.ndarray:
    """Returns a baseline's directions, float32 [n, d] with rows of norm 1.

    Args:
        x: The train set.
        latents: F; neurons, pca and ica ignore it and have 2d directions; ica fewer where dimensions do not vary.
        method: One of COMPUTED.
        centre: The train set's mean [d] and scale, see `SparseAutoencoder`.

    Raises:
        InputError: There is no such baseline, or there are fewer tokens than directions to draw from them.
    """
    rng = _rng(method, seed)
    if method == "pca":
        rows = _components(x, centre[0])
    elif method == "ica":
        spread = np.linalg.eigvalsh(_covariance(x, centre[0]))
        varying = int((spread > 1e-6 * spread[-1]).sum())  # dimensions, by all tokens: the same number for every seed
        rows = _independent(standardised_sample(x, rng, centre)[:_ICA_TOKENS], varying, rng)
    elif method == "neurons":
        rows = np.concatenate([np.eye(x.width), -np.eye(x.width)]).astype(np.float32)
    else:
        rows = _drawn(method, standardised_sample(x, rng, centre), latents, rng)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def sample(x: Activations, method: str, centre: tuple[np.ndarray, float], seed: int = 0) -> np.ndarray:
    """Returns the standardised tokens that a method's clusters and gain are fitted to, float32 [at most 262,144, d].

    They are read from x in seconds, so nothing stores them.
    """
    return standardised_sample(x, _rng(method, seed), centre)


def build(
    rows: np.ndarray,
    sample: np.ndarray | None,
    k: int,
    method: str,
    centre: tuple[np.ndarray, float],
    layer: int | None = None,
    tokens: str = "patches",
) -> SparseAutoencoder:
    """Returns the baseline with these directions, its gain fitted to the sample.

    Args:
        rows: See `directions`.
        sample: Tokens [m, d], see `sample`; None for ORTHONORMAL methods, whose gain is 1.
        k: At most the number of directions is taken.
        centre: The train set's mean [d] and scale.
        layer: Where the activations come from.
        tokens: patches, class or all.
    """
    import torch

    from sae.autoencoder import SAEConfig, SparseAutoencoder, gain

    mean, scale = centre
    config = SAEConfig(rows.shape[1], len(rows), min(k, len(rows)), method, "standardised", layer, tokens)
    model = SparseAutoencoder(config, torch.tensor(mean).float(), scale)
    out, size = rows, np.float32(1)
    if method == "ica":
        mixing = np.linalg.pinv(rows[: len(rows) // 2].astype(np.float64)).T
        out = np.concatenate([mixing, -mixing])
        size = np.linalg.norm(out, axis=1, keepdims=True)
    with torch.no_grad():
        model.W_enc.copy_(torch.from_numpy(rows * size))
        model.W_dec.copy_(torch.from_numpy(out / size))
        if sample is not None:
            model.W_enc.mul_(gain(model, torch.from_numpy(sample)))
    fitted = 0 if sample is None else len(sample)
    model.record = {"tokens": fitted, "precision": "fp32", "device": "cpu"}
    return model.eval().requires_grad_(False)


def _rng(method: str, seed: int) -> np.random.Generator:
    if method not in COMPUTED:
        raise InputError(f"method {method}: no such baseline; there are {', '.join(COMPUTED)}")
    return np.random.default_rng([seed, COMPUTED.index(method)])


def _drawn(method: str, tokens: np.ndarray, latents: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the directions of the random methods, float32 [F, d]."""
    if method == "random":
        return rng.standard_normal((latents, tokens.shape[1]), np.float32)
    if len(tokens) < latents:
        raise InputError(f"method {method}: {latents} directions cannot be drawn from {len(tokens)} train tokens")
    if method == "sampled":
        return tokens[:latents]
    return centres(tokens, latents, rng)


def _independent(tokens: np.ndarray, components: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the rows of the unmixing matrix, and their negatives, [2 · components, d]."""
    from sklearn.decomposition import FastICA

    search = FastICA(components, whiten_solver="svd", tol=1e-3, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings(action="ignore"):  # of the last round, and of dimensions that do not vary
        rows = search.fit(tokens).components_
    return np.concatenate([rows, -rows]).astype(np.float32)


def _components(x: Activations, mean: np.ndarray) -> np.ndarray:
    """Returns the principal components of all tokens, the largest variance first, and their negatives, [2d, d]."""
    components = np.linalg.eigh(_covariance(x, mean))[1].T[::-1]
    return np.concatenate([components, -components]).astype(np.float32)


def _covariance(x: Activations, mean: np.ndarray) -> np.ndarray:
    """Returns the sum over all tokens of the products of their dimensions' distances from the mean, [d, d]."""
    covariance = np.zeros((x.width, x.width))
    for _ids, block in x.blocks(max(1, 2**22 // (x.tokens * x.width))):
        centred = block.reshape(-1, x.width).astype(np.float64) - mean
        covariance += centred.T @ centred
    return covariance
