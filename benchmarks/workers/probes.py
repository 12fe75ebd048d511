"""Probes as visaebench fits them, and with one of its choices changed at a time."""

from __future__ import annotations

import numpy as np
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

SIZES = (1, 5, 10, 20, 50, 100)  # visaebench's


def probe(
    pooled: np.ndarray,
    labels: np.ndarray,
    seed: int,
    leak: bool = True,
    standardise: bool = False,
    in_turn: bool = False,
) -> dict[int, float]:
    """Returns the accuracy of probes on the k best latents by k; by default, exactly visaebench's.

    Args:
        leak: latents are chosen on all images, the test images among them.
        standardise: each latent to mean 0 and deviation 1 on train images.
        in_turn: the best latent of each class against the rest, then the second best, …; else by F over all classes.
    """
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    seen = np.arange(len(labels)) if leak else train
    order = np.argsort(np.nan_to_num(f_classif(pooled[seen], labels[seen])[0], nan=-np.inf))[::-1]
    if in_turn:
        scores = [np.nan_to_num(f_classif(pooled[seen], labels[seen] == c)[0], nan=-np.inf) for c in np.unique(labels)]
        order = np.array(list(dict.fromkeys(np.argsort(-np.array(scores), 1).T.ravel().tolist())))
    if standardise:
        pooled = (pooled - pooled[train].mean(0)) / np.maximum(pooled[train].std(0), 1e-6)
    accuracies = {}
    for k in (k for k in SIZES if k <= pooled.shape[1]):
        fitted = LogisticRegression(max_iter=500, random_state=seed).fit(pooled[train][:, order[:k]], labels[train])
        accuracies[k] = float(fitted.score(pooled[test][:, order[:k]], labels[test]))
    return accuracies
