"""Sparse probing: classes predicted from one or a few latents, compared with all dimensions of the raw activations.

Sources: Gurnee et al. 2023 (arXiv 2305.01610) for k-sparse probes, Karvonen et al. 2025 (SAEBench, arXiv 2503.09532)
for their use on SAEs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import expit
from threadpoolctl import threadpool_limits

from sae.evidence.classes import firsts

STRENGTHS = (0.001, 0.03, 1.0)  # inverse regularisations C that the dense probe chooses from, the strongest first
# Classes need this many images in each split, and so do all other images; a quarter of them is kept apart once.
_SUPPORT = 5
_MOST = 60  # classes over all attributes; those with the most images are taken
_MEASURED = ["auroc", "balanced_accuracy", "f1"]
_COLUMNS = ["attribute", "class", "probe", *_MEASURED, "support_train", "support_held_out", "latents"]


@dataclass(frozen=True)
class Probes:
    """The results of probes on held-out images.

    table: a row per attribute, class and probe: attribute, class, probe (the number of latents as text; `dense`;
    `shuffled`), auroc, balanced_accuracy, f1 (see `measure`), support_train and support_held_out (images of the class),
    latents (those the probe reads, the best first; empty for `dense`). scores: float64 [held-out images, rows], the
    log-odds that each row's probe gives to each held-out image, above 0 for the class; NaN where the image's class is
    not known. truth: bool of the same shape, whether the image is of the row's class. Images are in the order given, so
    `auroc(scores, truth, weights)` is the AUROC on draws of these images.
    """

    table: pd.DataFrame
    scores: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class _Attribute:
    """One attribute's classes to probe: a row each, the class of every image (-1: not known), and the known images."""

    classes: pd.DataFrame
    number: np.ndarray
    fit: np.ndarray
    test: np.ndarray

    @property
    def truth(self) -> np.ndarray:
        """Whether each image is of each class, bool [n, classes]."""
        return self.number[:, None] == self.classes["number"].to_numpy()


# The matrices are small: threads would spend most of their time waiting for each other.
@threadpool_limits.wrap(limits=1, user_api="blas")
def probe(
    latents: sparse.csr_array,
    labels: Mapping[str, Sequence],
    train: np.ndarray,
    sizes: Sequence[int] = (1, 2, 5),
    seed: int = 0,
) -> Probes:
    """Fits one-vs-rest probes for every class on the train images and measures them on the others.

    A probe is a logistic regression on standardised inputs, with both classes of equal weight. The k latents it reads
    are those with the best AUROC by themselves, for the class or against it, on the train images: unlike the difference
    of means, AUROC is not swayed by a few strong activations, and a monotone change of a latent does not change it. The
    latents are not chosen jointly: two of the best may be redundant.

    The probe `shuffled` reads max(sizes) latents and is chosen and fitted on the class's train labels in random order:
    it shows the effect of chance when the best of many latents are chosen; its mean AUROC is 0.5. Images without a
    class do not count for that attribute.

    Args:
        latents: image-level activations [n, F], above 0 where stored, such as `Codes.images`.
        labels: attribute -> the class of each image [n], None or NaN where it is not known.
        train: bool [n], whether probes are fitted on an image; all others are held out.
        sizes: numbers of latents that the probes read.
        seed: of the shuffled labels.
    """
    rng, most, found = np.random.default_rng(seed), max(sizes), []
    fit: np.ndarray | None = None
    unseen = latents[np.flatnonzero(~np.asarray(train, bool))].tocsc()
    for part in _attributes(labels, train):
        # Most attributes are known for the same images, and the sort is the slowest part.
        if fit is None or not np.array_equal(part.fit, fit):
            fit, seen = part.fit, latents[part.fit].tocsc()
            ranks = latent_ranks(seen)
        y = part.truth[fit]
        shuffled = rng.permuted(y, axis=0)  # each class by itself, so that their errors are independent
        chosen, by_chance = (_select(ranks, target, most) for target in (y, shuffled))
        probes = {str(size): (y, chosen[:, :size]) for size in sizes} | {"shuffled": (shuffled, by_chance)}
        used, place = np.unique(np.concatenate([few.ravel() for _y, few in probes.values()]), return_inverse=True)
        x, x_test = _standardised(seen[:, used].toarray(), unseen[:, used].toarray())
        places = np.split(place, np.cumsum([few.size for _y, few in probes.values()])[:-1])
        for (name, (target, few)), columns in zip(probes.items(), places, strict=True):
            columns = columns.reshape(few.shape)
            beta = logistic(x.T[columns], target.T)
            scores = np.einsum("ck,ckn->nc", beta[:, :-1], x_test.T[columns]) + beta[:, -1]
            found.append((part, part.classes.assign(probe=name, latents=few.tolist()), scores))
    return _probes(found, train)


@threadpool_limits.wrap(limits=1, user_api="blas")
def probe_dense(
    x: np.ndarray,
    labels: Mapping[str, Sequence],
    train: np.ndarray,
    seed: int = 0,
) -> Probes:
    """Fits the probes `dense`, which read all raw activations: the same for all dictionaries of a layer.

    The regularisation, one for an attribute, is the best of three on a quarter of the train images kept apart.

    Args:
        x: image-level raw activations [n, d], such as mean and maximum over an image's tokens side by side: a mean
            alone hides small objects, and latents count by their strongest token.
        seed: of the images kept apart.

    Other arguments: see `probe`.
    """
    rng, found = np.random.default_rng([seed, 1]), []
    for part in _attributes(labels, train):
        y = part.truth
        # Every fourth image in the order of the classes: each class is in both parts.
        mixed = rng.permutation(part.fit)
        mixed = mixed[np.argsort(part.number[mixed], kind="stable")]
        apart = np.arange(len(mixed)) % 4 == 1
        inner, outer = mixed[~apart], mixed[apart]
        tried = [measure(_ridge(x[inner], y[inner], x[outer], strength), y[outer])["auroc"] for strength in STRENGTHS]
        best = STRENGTHS[int(np.argmax([auroc.mean() for auroc in tried]))]
        rows = part.classes.assign(probe="dense", latents=[[] for _ in range(len(part.classes))])
        found.append((part, rows, _ridge(x[part.fit], y[part.fit], x[part.test], best)))
    return _probes(found, train)


def measure(scores: np.ndarray, truth: np.ndarray) -> pd.DataFrame:
    """Returns auroc, balanced_accuracy and f1 for each column of scores and truth [n, rows], see `Probes`.

    auroc: see `auroc`. balanced_accuracy: (share of the class's images above 0 + share of the other images at or below
    0) / 2; 0.5 for any constant score. f1: 2·TP / (2·TP + FP + FN). Scores that are NaN are left out. NaN where a
    column has no image of the class, or no other image.
    """
    known = ~np.isnan(scores)
    yes, no = known & truth, known & ~truth
    positives, negatives = yes.sum(0), no.sum(0)
    hits, alarms = (yes & (scores > 0)).sum(0), (no & (scores > 0)).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = (hits / positives + 1 - alarms / negatives) / 2
        f1 = np.where(np.isnan(accuracy), np.nan, 2 * hits / (hits + alarms + positives))
    return pd.DataFrame(dict(zip(_MEASURED, (auroc(scores, truth)[0], accuracy, f1), strict=True)))


def auroc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the probability that an image of the class scores higher than another image; a tie counts half.

    Args:
        scores, truth: [n, rows], see `Probes`. Scores that are NaN are left out.
        weights: how often each image counts, [draws, n]; None: once.

    Returns:
        float64 [draws, rows]; NaN where no image of the class counts, or no other image.
    """
    times = np.ones((len(scores), 1)) if weights is None else np.asarray(weights, np.float64).T
    found = np.full((times.shape[1], scores.shape[1]), np.nan)
    for i, (score, of_class) in enumerate(zip(scores.T, truth.T, strict=True)):
        order = np.argsort(score)[: np.count_nonzero(~np.isnan(score))]  # NaN are sorted behind all others
        if not len(order):
            continue
        score, drawn = score[order], times[order]
        level = np.append(0, np.flatnonzero(score[1:] != score[:-1]) + 1)  # where the next higher score begins
        positive = np.add.reduceat(drawn * of_class[order, None], level)
        negative = np.add.reduceat(drawn, level) - positive
        below = np.cumsum(negative, 0) - negative / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            found[:, i] = (positive * below).sum(0) / (positive.sum(0) * negative.sum(0))
    return found


def latent_ranks(latents: sparse.csc_array) -> sparse.csc_array:
    """Returns each image's rank by each latent, minus the silent images' rank, float64 [n, F], stored like `latents`.

    All silent images share one mean rank, like all images of equal activation. Stored values must be above 0.
    """
    n, fires = latents.shape[0], np.diff(latents.indptr)
    latent = np.repeat(np.arange(latents.shape[1]), fires)
    order = np.lexsort((latents.data, latent))
    ordered = latents.data[order]
    first = firsts(ordered, latent)
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


def logistic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fits p logistic regressions at once, by Newton's method; a few inputs need only a few steps.

    Minimises Σ_i w_i log(1 + exp(-s_i (β·x_i + β_0))) + ‖β‖² / 2, with s_i = ±1 and weights w_i that sum to n and give
    both classes equal weight: scikit-learn's LogisticRegression(C=1, class_weight="balanced").

    Args:
        x: standardised inputs, float64 [p, k, n].
        y: bool [p, n], each with both classes.

    Returns:
        β and, last, the intercept β_0, float64 [p, k + 1].
    """
    x = np.concatenate([x, np.ones_like(x[:, :1])], 1)
    sign, penalty = np.where(y, 1.0, -1.0), np.append(np.ones(x.shape[1] - 1), 0)
    positives = y.sum(1, keepdims=True)
    weight = y.shape[1] / 2 / np.where(y, positives, y.shape[1] - positives)

    def evaluate(beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        margin = sign * (beta[:, None] @ x)[:, 0]
        loss = (weight * np.logaddexp(0, -margin)).sum(1) + (penalty * beta**2).sum(1) / 2
        return margin, loss[:, None]

    beta = np.zeros(x.shape[:2])
    margin, loss = evaluate(beta)
    for _ in range(100):
        wrong = expit(-margin)
        gradient = penalty * beta - (x @ (weight * sign * wrong)[..., None])[..., 0]
        if np.abs(gradient).max() < 1e-6:
            break
        curvature = (x * (weight * wrong * (1 - wrong))[:, None]) @ x.swapaxes(1, 2) + np.diag(penalty)
        step, best = np.linalg.solve(curvature, gradient[..., None])[..., 0], loss
        margin, loss = evaluate(beta - step)
        while (worse := loss > best * (1 + 1e-9)).any():  # too far: the loss must not rise
            step = np.where(worse, step / 2, step)
            margin, loss = evaluate(beta - step)
        beta = beta - step
    return beta


def _attributes(labels: Mapping[str, Sequence], train: np.ndarray) -> Iterator[_Attribute]:
    """Yields the attributes that have classes to probe."""
    train, numbers, parts = np.asarray(train, bool), {}, [pd.DataFrame(columns=["images"])]
    for attribute, values in labels.items():
        number, names = pd.factorize(np.asarray(values, object), sort=True)
        support = [np.bincount(number[part & (number >= 0)], minlength=len(names)) for part in (train, ~train)]
        enough = np.all([(s >= _SUPPORT) & (s.sum() - s >= _SUPPORT) for s in support], axis=0)
        table = {"attribute": attribute, "class": names, "number": np.arange(len(names)), "images": sum(support)}
        table |= {"support_train": support[0], "support_held_out": support[1]}
        numbers[attribute] = number
        parts.append(pd.DataFrame(table)[enough])
    table = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    chosen = table.loc[sorted(table["images"].sort_values(ascending=False, kind="stable").index[:_MOST])]
    for attribute, part in chosen.groupby("attribute", sort=False) if len(chosen) else ():
        number = numbers[attribute]
        yield _Attribute(part, number, np.flatnonzero(train & (number >= 0)), np.flatnonzero(~train))


def _select(ranks: sparse.csc_array, y: np.ndarray, most: int) -> np.ndarray:
    """Returns the latents with the best AUROC for each class, the best first, [classes, most]."""
    return np.argsort(-np.abs(latent_auroc(ranks, y) - 0.5), axis=1, kind="stable")[:, :most]


def _standardised(x: np.ndarray, x_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales the columns of both to mean 0 and variance 1 in x, float64; a column that is constant in x becomes 0."""
    x, x_test = x.astype(np.float64), x_test.astype(np.float64)
    mean, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 1e-9 * np.abs(mean), spread, np.inf)
    return (x - mean) / spread, (x_test - mean) / spread


def _ridge(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, strength: float) -> np.ndarray:
    """Fits a probe on x [n, d] for each class of y [n, classes]; returns its scores of x_test, [n_test, classes]."""
    from sklearn.linear_model import LogisticRegression  # here: it takes seconds to import, and most probes do without

    x, x_test = _standardised(x, x_test)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    return np.stack([model.fit(x, column).decision_function(x_test) for column in y.T], 1)


def _probes(parts: list[tuple[_Attribute, pd.DataFrame, np.ndarray]], train: np.ndarray) -> Probes:
    """Puts probes together, class by class: for each attribute tables of its classes and their scores beside them."""
    if not parts:
        empty = np.zeros((np.count_nonzero(~np.asarray(train, bool)), 0))
        return Probes(pd.DataFrame(columns=_COLUMNS), empty, empty.astype(bool))
    table = pd.concat([rows for _part, rows, _scores in parts])
    order = np.argsort(table.index, kind="stable")
    known = [np.where(part.number[part.test, None] < 0, np.nan, scores) for part, _rows, scores in parts]
    scores = np.concatenate(known, 1)[:, order]
    truth = np.concatenate([part.truth[part.test] for part, _rows, _scores in parts], 1)[:, order]
    table = pd.concat([table.iloc[order].reset_index(drop=True), measure(scores, truth)], axis=1)
    return Probes(table[_COLUMNS], scores, truth)
