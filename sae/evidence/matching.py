"""Matches of latents across seeds, ks and layers, and their values by chance.

Two latents of the same layer can be compared by the cosine of their decoder rows, any two latents by the correlation of
their activations on the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import sparse

from sae.errors import InputError
from sae.evidence.measures import FOUND, RELATED

_BLOCK = 2**24  # how many correlations are computed at a time, so that 24,576 x 24,576 of them need no tens of GB


def correlation(a: sparse.csr_array, b: sparse.csr_array) -> np.ndarray:
    """Pearson correlation of the activations of two SAEs' latents on the same tokens, zeros included.

    r_fg = (E[a_f b_g] - E[a_f] E[b_g]) / (std(a_f) std(b_g)), float32 [F, G], for codes a [n, F] and b [n, G] whose
    rows are the same n tokens: of another seed, another k or another layer. 0 for a latent that never fires or whose
    activation is the same on every token.

    Raises:
        InputError: a and b have different numbers of rows.
    """
    n = a.shape[0]
    if b.shape[0] != n:
        raise InputError(f"codes of {n} and of {b.shape[0]} tokens: a correlation needs the same tokens in both")
    a, b = a.astype(np.float64), b.astype(np.float64)
    (mean_a, std_a), (mean_b, std_b) = _moments(a), _moments(b)
    by_latent = a.T.tocsr()
    r = np.empty((a.shape[1], b.shape[1]), np.float32)
    step = max(1, _BLOCK // b.shape[1])
    for first in range(0, len(r), step):
        rows = slice(first, first + step)
        covariance = (by_latent[rows] @ b).toarray() / n - np.outer(mean_a[rows], mean_b)
        r[rows] = covariance / np.outer(std_a[rows], std_b)
    return r.clip(-1, 1, out=r)


def _moments(z: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, the latter infinite for a constant one: its correlations are 0."""
    mean, square = z.sum(0) / z.shape[0], z.power(2).sum(0) / z.shape[0]
    variance = square - mean**2
    varies = variance > 1e-12 * square  # below is the rounding of a constant column
    return mean, np.sqrt(variance, out=np.full(len(mean), np.inf), where=varies)


def assign(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The one-to-one matching with the largest total similarity (the Hungarian method), for similarity [F, F].

    Returns the partner of each latent, int64 [F], and their similarity, float64 [F].
    """
    from scipy.optimize import linear_sum_assignment  # here: the import takes longer than most matchings

    latent, partner = linear_sum_assignment(similarity, maximize=True)
    return partner, similarity[latent, partner].astype(np.float64)


def stability(
    own: tuple[np.ndarray, sparse.csr_array], others: Mapping[int, tuple[np.ndarray, sparse.csr_array]]
) -> pd.DataFrame:
    """The stability of each latent: its similarity with its counterparts in SAEs that differ in the seed alone.

    Its SAE is matched one to one with every other SAE, once by the cosine of their decoder rows and once by the
    correlation of their activations. A latent's stability is its similarity with its partner, averaged over the other
    seeds. 1: every seed has the latent; `null_stability` gives the values by chance. Latents that never fire take part
    in the matching.

    Sources: Hungarian matching across seeds, Paulo & Belrose 2025 (arXiv 2501.16615); stability as the mean similarity
    after it, Fel et al. 2025 (arXiv 2502.12892).

    Args:
        own: W_dec [F, d] and activations [n, F].
        others: by seed, the same of the other SAEs, on the same n tokens.

    Returns:
        a row per latent: latent, fires (on any of the tokens), stability_cosine, stability_correlation (NaN where it
        does not fire); and in lists by other seed: partner_seeds, the partners partners_by_cosine and
        partners_by_correlation, and partner_correlations, how well the latter correlate.

    Without other seeds, the stabilities are NaN and the lists empty.

    Raises:
        InputError: the dictionaries differ in size.
    """
    decoder, z = own
    if any(other.shape != decoder.shape for other, _z in others.values()):
        raise InputError("stability: the seeds' dictionaries differ in size")
    fires, seeds = z.sum(0) > 0, sorted(others)
    if not seeds:
        missing, none = np.full(len(fires), np.nan), [np.empty(0, np.int64)] * len(fires)
        columns = {"latent": np.arange(len(fires)), "fires": fires, "stability_cosine": missing}
        lists = ("partner_seeds", "partners_by_cosine", "partners_by_correlation")
        columns |= {"stability_correlation": missing, **dict.fromkeys(lists, none)}
        return pd.DataFrame(columns | {"partner_correlations": [np.empty(0)] * len(fires)})
    by_cosine = [assign(_unit(decoder) @ _unit(others[seed][0]).T) for seed in seeds]
    by_correlation = [assign(correlation(z, others[seed][1])) for seed in seeds]
    (partners_by_cosine, cosines), (partners, correlations) = (
        (np.stack(part, 1) for part in zip(*found, strict=True)) for found in (by_cosine, by_correlation)
    )
    return pd.DataFrame(
        {
            "latent": np.arange(len(fires)),
            "fires": fires,
            "stability_cosine": cosines.mean(1),
            "stability_correlation": np.where(fires, correlations.mean(1), np.nan),
            "partner_seeds": list(np.tile(seeds, (len(fires), 1))),
            "partners_by_cosine": list(partners_by_cosine),
            "partners_by_correlation": list(partners),
            "partner_correlations": list(correlations),
        }
    )


def null_stability(latents: int, tokens: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The stability_cosine, [F] each, that two dictionaries of F = `latents` rows reach without having learnt anything.

    `random directions`: Gaussian rows. `random tokens`: tokens minus the mean token, 2F of them drawn without
    replacement; two dictionaries that merely copied some of the data would reach these values. Left out where there are
    fewer than 2F tokens. Only one pair is matched, so the values spread more than means over several seeds.

    Args:
        tokens: activations [n, d] of the layer.
    """

    def matched(rows: np.ndarray) -> np.ndarray:
        one, two = np.split(_unit(rows), 2)
        return assign(one @ two.T)[1]

    nulls = {"random directions": matched(rng.standard_normal((2 * latents, tokens.shape[1])))}
    if len(tokens) >= 2 * latents:
        drawn = np.sort(rng.choice(len(tokens), 2 * latents, replace=False))
        nulls["random tokens"] = matched(rng.permutation(tokens[drawn] - tokens.mean(0, dtype=np.float64)))
    return nulls


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to norm 1, float32; a zero row stays one."""
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def across_ks(r: np.ndarray, fired: np.ndarray, threshold: float = FOUND, partial: float = RELATED) -> pd.DataFrame:
    """The outcome of each latent of one SAE in a second SAE of the same layer, at another k.

    A latent's best match is the latent of the other SAE with which its activations correlate most. Its children are the
    latents of the second SAE that have it as best match, with r >= partial. The outcome is the first of these that
    applies:

        dead      it never fires
        lost      no latent of the second has r >= partial
        same      it and its best match are each other's, with r >= threshold; and it has no other child, or
                  r >= √(1 - partial²)
        split     two or more children
        changed   it and its best match are each other's, with r < threshold
        merged    its best match has another latent of the first as its own best match

    Further children do not count above r = √(1 - partial²), 0.954 by default: if two uncorrelated latents share a
    latent, their r² add up to at most 1, so beside such a match no latent with r >= partial can be a part of it.
    Splitting is Bricken et al.'s term (2023, Towards Monosemanticity); merging is not the feature absorption of Chanin
    et al. 2024 (arXiv 2409.14507), where a latent stays silent on tokens that a narrower one takes over.

    Args:
        r: `correlation` of the two SAEs, [F, G].
        fired: bool [F], whether the first's latent fires on any token.

    Returns:
        a row per latent of the first: latent, outcome (see above), best (index in the second) and r_best (-1 and
        NaN for the dead), children (how many), child_latents (by falling r).
    """
    latents, others = np.arange(r.shape[0]), np.arange(r.shape[1])
    best, parent = r.argmax(1), r.argmax(0)
    r_best, r_parent = r[latents, best], r[parent, others]
    order = np.argsort(-r_parent, kind="stable")
    order = order[r_parent[order] >= partial]
    order = order[np.argsort(parent[order], kind="stable")]  # by parent, each one's children by falling r
    children = np.bincount(parent[order], minlength=len(latents))
    mutual = parent[best] == latents
    same = mutual & (r_best >= threshold) & ((children < 2) | (r_best >= np.sqrt(1 - partial**2)))
    outcome = np.select(
        [~fired, r_best < partial, same, children >= 2, mutual],
        ["dead", "lost", "same", "split", "changed"],
        "merged",
    )
    return pd.DataFrame(
        {
            "latent": latents,
            "outcome": outcome,
            "best": np.where(fired, best, -1),
            "r_best": np.where(fired, r_best, np.nan),
            "children": children,
            "child_latents": [part.tolist() for part in np.split(order, np.cumsum(children)[:-1])],
        }
    )


def shuffled_rows(z: sparse.csr_array, tokens_per_image: int, rng: np.random.Generator) -> sparse.csr_array:
    """Codes z [n, F] with shuffled images: each image gets the tokens of another image, in their order.

    The frequency, strength and position of firing stay the same, so the remaining matches are due to chance or to
    position.

    Raises:
        InputError: n is no multiple of tokens_per_image, or there is one image only, which cannot be exchanged.
    """
    images, rest = divmod(z.shape[0], tokens_per_image)
    if rest or images < 2:
        raise InputError(
            f"{z.shape[0]} tokens: not two or more held-out images of {tokens_per_image} tokens each, whose exchange "
            "shows what chance matches; raise held_out or evaluation.images, or add images"
        )
    circle = rng.permutation(images)
    source = np.empty(images, np.int64)
    source[circle] = np.roll(circle, 1)  # along one circle no image keeps its tokens
    return z[(source[:, None] * tokens_per_image + np.arange(tokens_per_image)).ravel()]


def across_layers(
    correlations: Sequence[np.ndarray], fired: Sequence[np.ndarray], threshold: float = FOUND
) -> pd.DataFrame:
    """Follows latents through L layers, each with its own SAE, by the correlation of their activations.

    previous, next: the best match in the layer before and after; a latent `appears` where it fires and r_previous is
    below the threshold, `persists` where it fires and r_next reaches it, `ends` where it fires and r_next does not. A
    chain is a run of layers whose latents are each other's best matches with r >= threshold, so that no two chains
    share a latent; a latent without such a neighbour is a chain of length 1.

    Matching features of consecutive layers: Balagansky et al. 2024 (arXiv 2410.07656), there by the SAEs' parameters.

    Args:
        correlations: `correlation` of each two consecutive layers, [F_l, F_{l+1}], L - 1 of them.
        fired: by layer, whether each latent fires on any of the tokens, bool [F_l].

    Returns:
        a row per position in the list and latent: position, latent, fires, previous, r_previous, next, r_next (missing
        for the silent, and where there is no layer before or after), appears (missing at the first layer), persists,
        ends (missing at the last), start (position at which its chain begins; missing for the silent), length (layers
        its chain spans; 0 for the silent).

    Raises:
        InputError: the matrices do not fit the layers.
    """
    if [r.shape for r in correlations] != [(len(a), len(b)) for a, b in pairwise(fired)]:
        raise InputError("across_layers: needs one matrix [F_l, F_l+1] for each two consecutive layers")
    start = [np.full(len(alive), position) for position, alive in enumerate(fired)]
    end = [part.copy() for part in start]
    links = [_mutual(r, threshold) for r in correlations]
    for position, (latent, successor) in enumerate(links):
        start[position + 1][successor] = start[position][latent]
    for position, (latent, successor) in reversed(list(enumerate(links))):
        end[position][latent] = end[position + 1][successor]

    tables = []
    for position, alive in enumerate(fired):
        before = correlations[position - 1].T if position > 0 else None
        after = correlations[position] if position < len(correlations) else None
        table = pd.DataFrame({"position": position, "latent": np.arange(len(alive)), "fires": alive})
        table["previous"], table["r_previous"], before = _best(before, alive, threshold)
        table["next"], table["r_next"], after = _best(after, alive, threshold)
        # Missing for every latent if there is no such layer: `False & missing` would be False.
        table["appears"] = (~before & alive).mask(before.isna())
        table["persists"], table["ends"] = after, (~after & alive).mask(after.isna())
        table["start"] = pd.array(start[position], "Int64")
        table.loc[~alive, "start"] = pd.NA
        table["length"] = np.where(alive, end[position] - start[position] + 1, 0)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _mutual(r: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that are each other's best match with r >= threshold: their rows and their columns."""
    best = r.argmax(1)
    rows = np.flatnonzero((r.argmax(0)[best] == np.arange(len(r))) & (r.max(1) >= threshold))
    return rows, best[rows]


def _best(r: np.ndarray | None, alive: np.ndarray, threshold: float) -> tuple[pd.Series, np.ndarray, pd.Series]:
    """Best match, its r (missing for the silent), and whether r reaches the threshold; all missing without a matrix."""
    if r is None:
        missing = pd.Series(pd.NA, range(len(alive)))
        return missing.astype("Int64"), np.full(len(alive), np.nan), missing.astype("boolean")
    found, highest = pd.Series(r.argmax(1)), r.max(1)
    return (
        found.astype("Int64").where(alive),
        np.where(alive, highest, np.nan),
        pd.Series(highest >= threshold).astype("boolean"),
    )


def layer_summary(matches: pd.DataFrame) -> pd.DataFrame:
    """Counts by layer, from `across_layers`: position, latents, alive, appear, persist, end (missing as there)."""
    layers = matches.groupby("position")
    counts = {"latents": layers.size(), "alive": layers["fires"].sum()}
    for name, column in {"appear": "appears", "persist": "persists", "end": "ends"}.items():
        counts[name] = layers[column].sum(min_count=1).astype("Int64")
    return pd.DataFrame(counts).reset_index()
