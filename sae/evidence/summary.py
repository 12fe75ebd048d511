"""The measures by which dictionaries are compared, each with its uncertainty.

Every number is a mean over latents, classes or tokens, and comes with draws: the same number on held-out images drawn
again with replacement (bootstrap, Efron 1979). The images of a draw are the same for all dictionaries, so that two
dictionaries are compared on the same images. For numbers about a sample of latents (interventions), the latents are
drawn again instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import sparse, stats

from sae.evidence import probing
from sae.evidence.measures import COVERED, MEASURES
from sae.evidence.probing import Probes
from sae.latent_codes import Codes

DRAWS = 200
INTERVAL = (0.025, 0.975)
SEEDS = 3  # from which their spread is known well enough


def weights(images: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Returns how often each image is drawn, [draws, images], each row summing to `images`."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), draws).astype(np.float64)


def table(parts: dict[str, tuple[float, np.ndarray, int]]) -> pd.DataFrame:
    """Returns a row per measure: measure, value, low and high (the middle 95 % of the draws), n, draws.

    The draws are shifted so that their mean is the value, which removes the bootstrap's bias (Efron & Tibshirani 1993,
    ch. 10): drawn images repeat, which lowers numbers about latents that fire on few images.

    Args:
        parts: measure -> its value, its draws, and the number of latents, classes or images in the mean. A value of NaN
            is left out: no latent fires, or no class can be tested. So is a draw in which that is so.
    """
    rows = []
    for measure, (value, draws, n) in parts.items():
        if not np.isfinite(value):
            continue
        middle = _known_mean(draws)
        draws = np.where(np.isnan(draws), middle, draws) + (value - middle)
        low, high = np.quantile(draws, INTERVAL)
        rows.append({"measure": measure, "value": value, "low": low, "high": high, "n": n, "draws": draws.tolist()})
    return pd.DataFrame(rows, columns=["measure", "value", "low", "high", "n", "draws"])


def fidelity(error: np.ndarray, spread: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray, int]:
    """FVU (see `fidelity.fvu`) of held-out images.

    Args:
        error: Σ‖x - x̂‖² over the tokens of each image, [n].
        spread: Σ‖x - mean‖² over the tokens of each image, with the mean of the tokens of all of these images, [n].
    """
    return float(error.sum() / spread.sum()), (w @ error) / (w @ spread), len(error)


def answers(
    images: sparse.csr_array, pairs: pd.DataFrame, labels: Mapping[str, pd.Categorical]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns whether latents flag images, and the truth, for pairs of a latent and a class.

    Args:
        images: the strongest activations [n, F].
        pairs: rows with latent, attribute, class and threshold.
        labels: per attribute the class of each image [n].

    Returns:
        answer (activation at or above the threshold), true, known (whether the attribute is), bool [n, pairs] each.
    """
    active = images.tocsc()[:, pairs["latent"].to_numpy()].toarray()
    answer = (active >= pairs["threshold"].to_numpy(active.dtype)) & (active > 0)
    true, known = np.zeros_like(answer), np.zeros_like(answer)
    for attribute, rows in pairs.reset_index(drop=True).groupby("attribute", sort=False):
        values = labels[attribute]
        code = values.categories.get_indexer(rows["class"])
        true[:, rows.index] = values.codes[:, None] == code
        known[:, rows.index] = values.codes[:, None] >= 0
    return answer & known, true, known


def recovery(answer: np.ndarray, true: np.ndarray, w: np.ndarray) -> dict[str, tuple[float, np.ndarray, int]]:
    """Mean over classes of the F1 of their best latents, and the share that reaches `COVERED`.

    Args:
        answer, true: bool [images, classes], from `answers`.
        w: see `weights`, [draws, images].
    """

    def f1(w: np.ndarray) -> np.ndarray:
        both = w @ predicted + w @ actual
        return np.divide(2 * (w @ hits), both, out=np.zeros_like(both), where=both > 0)

    predicted, actual, hits = (part.astype(np.float64) for part in (answer, true, answer & true))
    once, drawn = f1(np.ones((1, len(answer)))), f1(w)
    return {
        "concept_recovery": (float(once.mean()), drawn.mean(1), answer.shape[1]),
        "class_coverage": (float((once >= COVERED).mean()), (drawn >= COVERED).mean(1), answer.shape[1]),
    }


def pointing(hit: np.ndarray, seen: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray, int]:
    """Mean over classes of the pointing game, from `token_types.localisation`: hit and seen [images, classes]."""
    shown = seen.any(0)
    hits, seen = (part[:, shown].astype(np.float64) for part in (hit & seen, seen))

    def share(w: np.ndarray) -> np.ndarray:
        images = w @ seen
        return np.nanmean(np.divide(w @ hits, images, out=np.full_like(images, np.nan), where=images > 0), 1)

    return float(share(np.ones((1, len(hit))))[0]), share(w), hits.shape[1]


def selectivity(
    answer: np.ndarray, true: np.ndarray, known: np.ndarray, w: np.ndarray, alive: int
) -> tuple[float, np.ndarray, int]:
    """Mean over all alive latents of the MCC with their classes, from `answers`; 0 for a latent without a class.

    The class and threshold were chosen on train images, so that chance gives 0 on held-out ones.

    Args:
        answer, true, known: bool [images, latents with a class], from `answers`.
        w: see `weights`, [draws, images].
        alive: number of latents that fire.
    """

    def mean_mcc(w: np.ndarray) -> np.ndarray:
        n, s, t, both = (w @ part for part in parts)
        product = s * t * (n - s) * (n - t)
        mcc = np.divide(both * n - s * t, np.sqrt(product), out=np.zeros_like(n), where=product > 0)
        return mcc.sum(1) / alive

    # As floats: a product of booleans does not use the BLAS.
    parts = [part.astype(np.float64) for part in (known, answer, true, answer & true)]
    return float(mean_mcc(np.ones((1, len(answer))))[0]), mean_mcc(w), alive


def probed(probes: Probes, size: int, w: np.ndarray) -> tuple[float, np.ndarray, int]:
    """Mean over classes of the held-out AUROC of the probes that read `size` latents; w [draws, probed images]."""
    chosen = np.flatnonzero(probes.table["probe"] == str(size))
    draws = _known_mean(probing.auroc(probes.scores[:, chosen], probes.truth[:, chosen], w))
    return float(_known_mean(probes.table["auroc"].to_numpy()[chosen])), draws, len(chosen)


def stability(codes: Codes, other: Codes, partner: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray, int]:
    """Mean correlation of activations between the latents that fire and their partners in another seed.

    0 for a partner that never fires.

    Args:
        codes, other: of the same held-out images.
        partner: the latent of `other` for each of `codes`, [F].
    """
    image = sparse.csr_array(
        (np.ones(codes.z.shape[0]), np.arange(codes.z.shape[0]), np.arange(len(codes.ids) + 1) * codes.tokens)
    )
    a, b = codes.z.astype(np.float64), other.z[:, partner].astype(np.float64)
    alive = np.flatnonzero(a.sum(0) > 0)
    sums = [(image @ part)[:, alive].toarray() for part in (a, b, a.multiply(b), a.multiply(a), b.multiply(b))]

    def mean_r(w: np.ndarray) -> np.ndarray:
        n = w.sum(1, keepdims=True) * codes.tokens
        a, b, ab, aa, bb = (w @ part / n for part in sums)
        product = np.maximum(aa - a * a, 0) * np.maximum(bb - b * b, 0)
        # A latent that fires on none of the images drawn has no correlation there.
        r = np.divide(ab - a * b, np.sqrt(product), out=np.full_like(ab, np.nan), where=product > 1e-24)
        return _known_mean(np.where((a > 0) & ~(b > 0), 0, r))

    return float(mean_r(np.ones((1, len(codes.ids))))[0]), mean_r(w), len(alive)


def interventions(latents: pd.DataFrame, seed: int = 0) -> dict[str, tuple[float, np.ndarray, int]]:
    """The share of latents whose ablation changes the output more than the control, and the mean agreement.

    Args:
        latents: the first of `interventions.tables`.
    """
    rng, parts, columns = np.random.default_rng(seed), {}, {}
    if len(latents):
        moved = latents["size_control"].notna() & (latents[["size", "size_control"]].max(axis=1) > 0)
        columns["causal_size"] = (latents["size"] > latents["size_control"])[moved].to_numpy(float)
        columns["causal_agreement"] = latents["agreement"].dropna().to_numpy(float)
    for measure, values in columns.items():
        if len(values):
            draws = values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(1)
            parts[measure] = values.mean(), draws, len(values)
    return parts


def _known_mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean along the last axis of all values but NaN; NaN if there are no others."""
    count = (~np.isnan(values)).sum(-1)
    return np.divide(np.nansum(values, -1), count, out=np.full(count.shape, np.nan), where=count > 0)


def compare(summaries: pd.DataFrame, methods: list[str], baselines: list[str]) -> pd.DataFrame:
    """Compares each SAE with each baseline at the same layer, k and seed, measure by measure.

    Draws of images say nothing about another training. So from three seeds on, a verdict also needs a mean gain over
    the seeds that its 95 % interval by Student's t keeps apart from 0: the least difference that a reader can rely on.
    That seeds move such measures more than people expect: Chanin 2026, arXiv 2605.18229.

    Args:
        summaries: tables of `table` with layer, k, method and seed.

    Returns:
        layer, k, seed, method, baseline, measure, value, value_baseline, gain (the difference, above 0 where the SAE is
        better), low, high (95 % of its draws), seeds (how many), mean_gain (over the seeds), reliable (the least
        |mean_gain| to rely on; NaN below three seeds), verdict: `better`, `worse`, or `open` where an interval holds 0.
    """
    rows = []
    for (layer, k, seed, measure), part in summaries.groupby(["layer", "k", "seed", "measure"], sort=True):
        facts = part.set_index("method")
        sign = 1 if MEASURES[measure].higher else -1
        for method in (m for m in methods if m in facts.index):
            for baseline in (b for b in baselines if b in facts.index):
                ours, theirs = facts.loc[method], facts.loc[baseline]
                draws = sign * (np.array(ours["draws"]) - np.array(theirs["draws"]))
                values = ours["value"], theirs["value"], sign * (ours["value"] - theirs["value"])
                rows.append([layer, k, seed, method, baseline, measure, *values, *np.quantile(draws, INTERVAL)])
    columns = "layer k seed method baseline measure value value_baseline gain low high"
    table = pd.DataFrame(rows, columns=columns.split())
    gains = table.groupby(["layer", "k", "method", "baseline", "measure"])["gain"]
    seeds, table["mean_gain"] = gains.transform("size"), gains.transform("mean")
    table["seeds"], error = seeds, gains.transform("std") / np.sqrt(seeds)
    table["reliable"] = (error * stats.t.ppf(INTERVAL[1], seeds - 1)).where(seeds >= SEEDS)
    margin = table["reliable"].fillna(-np.inf)
    better = (table["low"] > 0) & (table["mean_gain"] > margin)
    worse = (table["high"] < 0) & (-table["mean_gain"] > margin)
    return table.assign(verdict=np.select([better, worse], ["better", "worse"], "open"))
