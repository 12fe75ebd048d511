"""Sparse probing: how well one latent, or a few, tell a class, beside all dimensions of the raw activations.

Sources: Gurnee et al. 2023 (arXiv 2305.01610) for k-sparse probes, Karvonen et al. 2025 (SAEBench, arXiv 2503.09532)
for their use on SAEs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sae.errors import InputError

_STRENGTHS = (0.001, 0.03, 1.0)  # inverse regularisations C that the dense probe chooses from, the strongest first


@dataclass(frozen=True)
class Probes:
    """What probes say of held-out images.

    table: a row per attribute, class and probe: attribute, class, probe (the number of latents as text; `dense`;
    `shuffled`), auroc, balanced_accuracy, f1 (see `measure`), support_train and support_held_out (images of the class),
    latents (those the probe reads, the best first; empty for `dense`). scores: float64 [held-out images, rows], what
    each row's probe says of each held-out image, above 0 for the class; NaN where the image's class is not known.
    truth: bool of the same shape, whether the image is of the row's class. Images are in the order given, so
    `measure(scores[draw], truth[draw])` is what one bootstrap draw of the images gives.
    """

    table: pd.DataFrame
    scores: np.ndarray
    truth: np.ndarray


# The matrices are small: threads would wait for each other several times as long as one of them works.
@threadpool_limits.wrap(limits=1, user_api="blas")
def probe(
    latents: sparse.csr_array,
    dense: np.ndarray | None,
    labels: Mapping[str, Sequence],
    train: np.ndarray,
    sizes: Sequence[int] = (1, 2, 5),
    minimum_support: int = 5,
    most_classes: int = 60,
    seed: int = 0,
) -> Probes:
    """Fits one-vs-rest probes for every class on the train images and measures them on the others.

    A probe is a logistic regression on standardised inputs, with classes weighted to count alike. The k latents it
    reads are those with the best AUROC by themselves, for the class or against it, on the train images: unlike the
    difference of means, AUROC is not swayed by a few strong activations, and a monotone change of a latent does not
    change it. The latents are not chosen jointly: two of the best may say the same.

    The probe `dense` reads all of `dense`; its regularisation, one for an attribute, is the best of three on a quarter
    of the train images kept apart. `shuffled` reads max(sizes) latents and is chosen and fitted on the class's
    train labels in random order: it shows what choosing the best of many latents gains by chance, on average an AUROC
    of 0.5. Images whose class is not known take no part in an attribute.

    Args:
        latents: image-level activations [n, F], above 0 where stored, such as `Codes.images`.
        dense: image-level raw activations [n, d], such as mean and maximum over an image's tokens side by side: a mean
            alone hides what covers few patches, and latents count by their strongest token. None: no dense probe.
        labels: attribute -> the class of each image [n], None or NaN where it is not known.
        train: bool [n], which images probes are fitted on; all others are held out.
        sizes: how many latents a probe reads.
        minimum_support: images that a class, and the rest, must have in each split to be probed.
        most_classes: at most so many classes of all attributes together, those with the most images.
        seed: of the shuffled labels and of the images kept apart.

    Raises:
        InputError: minimum_support is below 4, too few to keep a quarter apart.
    """
    if minimum_support < 4:
        raise InputError(f"minimum_support {minimum_support}: a probe needs at least 4 images of a class")
    rng, train = np.random.default_rng(seed), np.asarray(train, bool)
    most, rows, scores, truth = max(sizes), [], [], []
    test, fit = np.flatnonzero(~train), None
    unseen = latents[test].tocsc()
    for attribute, part in _supported(labels, train, minimum_support, most_classes).groupby("attribute", sort=False):
        number, _names = pd.factorize(np.asarray(labels[attribute], object), sort=True)
        known = np.flatnonzero(train & (number >= 0))
        if not np.array_equal(known, fit):  # most attributes are known of the same images: sorting takes longest
            fit, seen = known, latents[known].tocsc()
            ranks = latent_ranks(seen)
        y = number[:, None] == part["number"].to_numpy()
        shuffled = rng.permuted(y[fit], axis=0)  # each class by itself, so that their errors are independent
        chosen, by_chance = (_select(ranks, target, most) for target in (y[fit], shuffled))
        by_dense = None if dense is None else _dense(dense, y, fit, test, number, rng)
        unknown = number[test] < 0
        for place, row in enumerate(part.itertuples()):
            probes = [(str(size), y[fit, place], chosen[place, :size]) for size in sizes]
            probes.append(("shuffled", shuffled[:, place], by_chance[place]))
            said = {}
            for name, target, few in probes:
                said[name] = few, _said(seen[:, few].toarray(), target, unseen[:, few].toarray())
            if by_dense is not None:
                said["dense"] = [], by_dense[:, place]
            for name, (few, score) in said.items():
                rows.append([attribute, row.name, name, row.train, row.held_out, list(map(int, few))])
                scores.append(np.where(unknown, np.nan, score))
                truth.append(y[test, place])
    facts = ["attribute", "class", "probe", "support_train", "support_held_out", "latents"]
    table = pd.DataFrame(rows, columns=facts)
    scores = np.array(scores, np.float64).reshape(len(rows), len(test)).T
    truth = np.array(truth, bool).reshape(len(rows), len(test)).T
    table = pd.concat([table, measure(scores, truth)], axis=1)
    return Probes(table[["attribute", "class", "probe", "auroc", "balanced_accuracy", "f1", *facts[3:]]], scores, truth)


def measure(scores: np.ndarray, truth: np.ndarray) -> pd.DataFrame:
    """Returns auroc, balanced_accuracy and f1 for each column of scores and truth [n, rows], see `Probes`.

    auroc: the chance that an image of the class scores higher than one of the rest, a tie counting half.
    balanced_accuracy: (share of the class's images above 0 + share of the rest's at or below 0) / 2; 0.5 for any
    constant answer. f1: 2·TP / (2·TP + FP + FN). Scores that are NaN are left out. NaN where a column has no image of
    the class, or none of the rest.
    """
    known = ~np.isnan(scores)
    yes, no = known & truth, known & ~truth
    positives, negatives = yes.sum(0), no.sum(0)
    # Unknown ones rank behind all others and so change no rank that counts.
    ranks = rankdata(np.where(known, scores, np.inf), axis=0) if scores.size else scores
    above = np.where(yes, ranks, 0).sum(0) - positives * (positives + 1) / 2
    hits, alarms = (yes & (scores > 0)).sum(0), (no & (scores > 0)).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = above / (positives * negatives)
        accuracy = (hits / positives + 1 - alarms / negatives) / 2
        f1 = np.where(np.isnan(accuracy), np.nan, 2 * hits / (hits + alarms + positives))
    return pd.DataFrame({"auroc": auroc, "balanced_accuracy": accuracy, "f1": f1})


def latent_ranks(latents: sparse.csc_array) -> sparse.csc_array:
    """Returns how far above the silent images the others rank by each latent, float64 [n, F], stored like `latents`.

    All silent images share one mean rank, as all images of equal activation do. All that is stored must be above 0.
    """
    n, fires = latents.shape[0], np.diff(latents.indptr)
    latent = np.repeat(np.arange(latents.shape[1]), fires)
    order = np.lexsort((latents.data, latent))
    ordered = latents.data[order]
    first = np.flatnonzero((np.diff(ordered, prepend=-1) != 0) | (np.diff(latent, prepend=-1) != 0))
    equal = np.diff(np.append(first, latents.nnz))
    among_firing = np.repeat(first - latents.indptr[latent[first]] + (equal - 1) / 2, equal)
    # From 0, the silent ones rank (silent - 1) / 2 and the firing ones begin at `silent`.
    lift = np.empty(latents.nnz)
    lift[order] = among_firing + ((n - fires) + 1)[latent] / 2
    return sparse.csc_array((lift, latents.indices, latents.indptr), latents.shape)


def latent_auroc(ranks: sparse.csc_array, y: np.ndarray) -> np.ndarray:
    """Returns the AUROC of every latent for every class, float64 [classes, F], from `latent_ranks`; 0.5 where silent.

    With p images of the class, q others and R the sum of the class's ranks from 0, AUROC = (R - p(p - 1)/2) / (p·q)
    (Mann & Whitney 1947): one sparse product for all latents and classes.

    Args:
        ranks: [n, F].
        y: bool [n, classes], each with images of the class and others.
    """
    positives = y.sum(0)[:, None]
    negatives = len(y) - positives
    silent = len(y) - np.diff(ranks.indptr)
    total = (ranks.T @ y.astype(np.float64)).T + positives * (silent - 1) / 2
    return (total - positives * (positives - 1) / 2) / (positives * negatives)


def _supported(labels: Mapping[str, Sequence], train: np.ndarray, minimum: int, most: int) -> pd.DataFrame:
    """Returns the classes to probe: attribute, name, its number among the attribute's sorted classes, its supports."""
    parts = [pd.DataFrame(columns=["attribute", "name", "number", "train", "held_out", "images"])]
    for attribute, values in labels.items():
        number, names = pd.factorize(np.asarray(values, object), sort=True)
        support = [np.bincount(number[part & (number >= 0)], minlength=len(names)) for part in (train, ~train)]
        enough = np.all([(s >= minimum) & (s.sum() - s >= minimum) for s in support], axis=0)
        rows = zip(names, range(len(names)), *support, sum(support), strict=True)
        parts.append(pd.DataFrame([[attribute, *row] for row in rows], columns=parts[0].columns)[enough])
    table = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    return table.loc[sorted(table["images"].sort_values(ascending=False, kind="stable").index[:most])]


def _select(ranks: sparse.csc_array, y: np.ndarray, most: int) -> np.ndarray:
    """Returns the latents that tell each class best by themselves, the best first, [classes, most]."""
    return np.argsort(-np.abs(latent_auroc(ranks, y) - 0.5), axis=1, kind="stable")[:, :most]


def _said(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, C: float = 1.0) -> np.ndarray:
    """Fits a probe on x [n, inputs] and y [n]; returns what it says of x_test, [held-out images]."""
    x, x_test = x.astype(np.float64), x_test.astype(np.float64)
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=C, class_weight="balanced", max_iter=1000).fit(scaler.transform(x), y)
    return model.decision_function(scaler.transform(x_test))


def _dense(
    x: np.ndarray, y: np.ndarray, fit: np.ndarray, test: np.ndarray, number: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Returns what the dense probes say of the images `test`, [len(test), classes]."""
    # Every fourth image in the order of the classes: each class is in both parts.
    mixed = rng.permutation(fit)
    mixed = mixed[np.argsort(number[mixed], kind="stable")]
    apart = np.arange(len(mixed)) % 4 == 1

    def said(rows: np.ndarray, others: np.ndarray, strength: float) -> np.ndarray:
        return np.stack([_said(x[rows], column[rows], x[others], strength) for column in y.T], 1)

    quality = [measure(said(mixed[~apart], mixed[apart], C), y[mixed[apart]])["auroc"].mean() for C in _STRENGTHS]
    return said(fit, test, _STRENGTHS[int(np.argmax(quality))])
