"""Dictionaries that are no SAEs, to see what an SAE buys: each as a `SparseAutoencoder`, so that all is measured alike.

    neurons   the residual stream's own dimensions, each with both signs: 2d latents
    pca       the principal components, each with both signs: 2d latents
    kmeans    directions from the mean to the centres of F clusters (MiniBatchKMeans of scikit-learn)
    random    F directions from a unit Gaussian
    sampled   directions from the mean to F tokens of the train set
    frozen    a TopK SAE whose random decoder is never trained; made by `training`

Rows w_i of norm 1 encode and decode: z = c · ReLU(the k largest of W x̃) and x̂ = z W, with one number c that makes the
squared error on train tokens smallest (1 where the rows are orthogonal). Sources: neurons and random dictionaries,
Sharkey et al. 2022 (Taking features out of superposition) and Bricken et al. 2023 (Towards Monosemanticity); frozen
and random ones against trained SAEs, arXiv 2602.14111.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans

from sae.activations import Activations
from sae.autoencoder import SAEConfig, SparseAutoencoder
from sae.errors import InputError

COMPUTED = ("neurons", "pca", "kmeans", "random", "sampled")  # those that this module makes
_FIT_TOKENS = 100_000  # at most, for the clusters and for c
_KMEANS_BATCH, _KMEANS_PASSES = 4096, 3


def build(
    x: Activations,
    k: int,
    latents: int,
    method: str,
    centre: tuple[np.ndarray, float],
    seed: int = 0,
    layer: int | None = None,
    tokens: str = "patches",
) -> SparseAutoencoder:
    """Makes a baseline from the train set's activations.

    Args:
        k: at most the number of directions is taken.
        latents: F, the number of directions where the method does not say it itself.
        method: one of COMPUTED.
        centre: the train set's mean [d] and scale, see `SparseAutoencoder`.

    Raises:
        InputError: there is no such baseline, or fewer tokens than directions to be drawn from them.
    """
    began = time.perf_counter()
    rng = np.random.default_rng([seed, COMPUTED.index(method) if method in COMPUTED else 0])
    mean, scale = centre
    sample = (_sample(x, rng) - mean.astype(np.float32)) * np.float32(scale)
    rows = _components(x, mean) if method == "pca" else _directions(method, sample, latents, rng)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    settings = SAEConfig(x.width, len(rows), min(k, len(rows)), method, "standardised", layer, tokens)
    sae = SparseAutoencoder(settings, torch.tensor(mean).float(), scale)
    with torch.no_grad():
        sae.W_enc.copy_(torch.from_numpy(rows))
        sae.W_dec.copy_(sae.W_enc)
        sae.W_enc *= _gain(sae, torch.from_numpy(sample))
    seconds = time.perf_counter() - began
    sae.record = {"tokens": len(sample), "seconds": round(seconds, 3), "precision": "fp32", "device": "cpu"}
    return sae.eval().requires_grad_(False)


def _sample(x: Activations, rng: np.random.Generator) -> np.ndarray:
    """Returns tokens of random images in random order, float32 [at most _FIT_TOKENS, d]."""
    images = rng.permutation(len(x))[: math.ceil(_FIT_TOKENS / x.tokens)]
    tokens = x.read(np.sort(images)).reshape(-1, x.width).astype(np.float32)
    return tokens[rng.permutation(len(tokens))[:_FIT_TOKENS]]


def _directions(method: str, sample: np.ndarray, latents: int, rng: np.random.Generator) -> np.ndarray:
    width = sample.shape[1]
    if method in ("kmeans", "sampled") and len(sample) < latents:
        raise InputError(f"method {method}: {latents} directions cannot be drawn from {len(sample)} train tokens")
    if method == "neurons":
        return np.concatenate([np.eye(width), -np.eye(width)]).astype(np.float32)
    if method == "random":
        return rng.standard_normal((latents, width), np.float32)
    if method == "sampled":
        return sample[:latents]
    if method == "kmeans":
        clusters = MiniBatchKMeans(
            latents,
            init="random",
            n_init=1,
            batch_size=min(_KMEANS_BATCH, len(sample)),
            max_iter=_KMEANS_PASSES,
            random_state=int(rng.integers(2**31)),
        )
        return clusters.fit(sample).cluster_centers_.astype(np.float32)
    raise InputError(f"method {method}: no such baseline; there are {', '.join(COMPUTED)}")


def _components(x: Activations, mean: np.ndarray) -> np.ndarray:
    """Returns the principal components of all tokens, the largest variance first, and their negatives, [2d, d]."""
    covariance = np.zeros((x.width, x.width))
    for _ids, block in x.blocks(max(1, 2**22 // (x.tokens * x.width))):
        centred = block.reshape(-1, x.width).astype(np.float64) - mean
        covariance += centred.T @ centred
    components = np.linalg.eigh(covariance)[1].T[::-1]
    return np.concatenate([components, -components]).astype(np.float32)


@torch.inference_mode()
def _gain(sae: SparseAutoencoder, target: torch.Tensor) -> float:
    """Returns the c of least squared error over standardised tokens [n, d]: Σ x̃·x̂ / Σ ‖x̂‖²."""
    along = square = 0.0
    for part in target.split(max(1, 2**23 // sae.config.latents)):
        guess = sae.combine(*sae.select(sae.pre_activations(part))).double()
        along += float((part * guess).sum())
        square += float(guess.square().sum())
    return along / max(square, 1e-30)
