"""Clusters of tokens (k-means), for a baseline and for the start of a training."""

from __future__ import annotations

import math

import numpy as np

from sae.store import Activations

MOST_TOKENS = 2**18  # at most
# On the built-in images, a hundred further rounds improve the error by less than a hundredth.
_ROUNDS, _OPERATIONS = 30, 3e13


def standardised_sample(x: Activations, rng: np.random.Generator, centre: tuple[np.ndarray, float]) -> np.ndarray:
    """Returns standardised tokens of random images in random order, float32 [at most 262,144, d].

    Args:
        centre: The train set's mean [d] and scale, see `SparseAutoencoder`.
    """
    images = rng.permutation(len(x))[: math.ceil(MOST_TOKENS / x.tokens)]
    tokens = x.read(np.sort(images)).reshape(-1, x.width).astype(np.float32)
    tokens = tokens[rng.permutation(len(tokens))[:MOST_TOKENS]]
    return (tokens - centre[0].astype(np.float32)) * np.float32(centre[1])


def centres(tokens: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the centres of clusters of tokens [n, d], float32 [count, d]; the tokens may be changed.

    Lloyd's rounds after a k-means++ start (scikit-learn), 30 or as many as take a few minutes. The same bytes with any
    number of threads.
    """
    from sklearn.cluster import KMeans  # here: it takes a second, and needs no torch
    from threadpoolctl import threadpool_limits

    rounds = int(np.clip(_OPERATIONS / (2 * len(tokens) * count * tokens.shape[1]), 3, _ROUNDS))
    clusters = KMeans(count, n_init=1, max_iter=rounds, random_state=int(rng.integers(2**31)), copy_x=False)
    with threadpool_limits(1, user_api="openmp"):  # threads would add up in any order
        return clusters.fit(tokens).cluster_centers_.astype(np.float32)
