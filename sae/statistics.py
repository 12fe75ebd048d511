"""The statistics of one layer's tokens before training, and warnings about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import InputError
from sae.files import read_json
from sae.store import OUTLIER, Activations, moments, scale

# Norms are counted in fine bins, 0.6 % wide, so that quantiles need no list of all tokens; figures get coarse ones.
_NORM_EDGES = 10 ** (np.arange(-8 * 400, 20 * 400 + 1) / 400)
_NORM_BINS_PER_BAR = 40
_SHOWN = slice(7 * 400, 12 * 400)  # the bins of the figures, from 0.1 to 10,000


def of_tokens(
    shards: Sequence[str | Path], tokens: str, ids: Sequence[int], whole: Sequence[str | Path] | None = None
) -> dict[str, Any]:
    """Returns the statistics of a layer before training, over the images `ids` (the train split).

    Args:
        shards: of the tokens that dictionaries are trained on.
        tokens: the kind of the tokens that dictionaries read.
        ids: of the images.
        whole: shards of images with all tokens, for the norms; None: the same.

    mean [d] and scale: (x - mean)·scale has E‖x‖² = d. gamma = ‖mean‖/‖std‖ predicts dead latents in SAEs that do not
    centre (arXiv 2605.31518). norms: mean, median and 99th percentile of ‖x‖ by token role. largest_dimensions: the
    dimensions with the most variance and their share of it. outlier_patches: share of patch tokens whose norm is
    above 4 times the median (Darcet et al. 2024, arXiv 2309.16588). warnings: sentences.

    Raises:
        InputError: a shard is damaged, or all activations are the same.
    """
    selected = Activations.open(shards, tokens, ids)
    mean, variance = moments(selected)
    try:
        factor = scale(mean, variance)
    except InputError as error:
        raise InputError(f"{shards[0]}: {error}") from error
    gamma = float(np.linalg.norm(mean) / np.sqrt(variance.sum()))
    order = np.argsort(-variance)[:5]
    share = variance[order] / variance.sum()

    whole = whole or shards
    everything = Activations.open(whole, "all", ids, verify=False)
    roles = np.array(read_json(Path(whole[0]).with_suffix(".json"))["roles"])
    roles = np.append(roles, ["patch"] * (everything.tokens - len(roles)))
    counts = {role: np.zeros(len(_NORM_EDGES) - 1, np.int64) for role in dict.fromkeys(roles)}
    totals = dict.fromkeys(counts, 0.0)
    for _ids, block in everything.blocks(64):
        norm = np.linalg.norm(block.astype(np.float32), axis=2)
        for role in counts:
            values = norm[:, roles == role].clip(_NORM_EDGES[0], _NORM_EDGES[-1] * 0.999)
            counts[role] += np.histogram(values, _NORM_EDGES)[0]
            totals[role] += float(values.sum())
    by_role: dict[str, dict[str, Any]] = {
        role: {
            "mean": totals[role] / int(count.sum()),
            "median": _quantile(count, 0.5),
            "p99": _quantile(count, 0.99),
            "histogram": _bars(count),
        }
        for role, count in counts.items()
    }
    above = _NORM_EDGES[:-1] > OUTLIER * by_role["patch"]["median"]
    outliers = float(counts["patch"][above].sum() / counts["patch"].sum())
    facts = {
        "tokens": tokens,
        "images": len(selected),
        "rows": len(selected) * selected.tokens,
        "mean": mean.tolist(),
        "scale": factor,
        "gamma": gamma,
        "norms": by_role,
        "variance": variance.tolist(),
        "largest_dimensions": [{"dimension": int(i), "share": float(s)} for i, s in zip(order, share, strict=True)],
        "effective_dimensions": float(variance.sum() ** 2 / (variance**2).sum()),
        "outlier_patches": outliers,
    }
    return facts | {"warnings": warnings_about(facts)}


def _bars(counts: np.ndarray) -> list[int]:
    """Returns the counts of a figure's bars; the first and the last also count the norms below and above."""
    last = (_SHOWN.stop - _SHOWN.start) // _NORM_BINS_PER_BAR - 1
    bar = ((np.arange(len(counts)) - _SHOWN.start) // _NORM_BINS_PER_BAR).clip(0, last)
    return np.bincount(bar, counts).astype(int).tolist()


def _quantile(counts: np.ndarray, share: float) -> float:
    """Returns the norm below which this share of the counted tokens lies, to the width of a bin."""
    place = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    return float(np.sqrt(_NORM_EDGES[place] * _NORM_EDGES[place + 1]))


def warnings_about(facts: Mapping[str, Any]) -> list[str]:
    """Returns one sentence for each unhealthy sign in a layer's statistics."""
    warnings = []
    if facts["gamma"] > 1:
        warnings.append(
            f"The mean vector is {facts['gamma']:.1f} times as long as the spread around it (γ): without centring "
            "many latents would die. Keep sae.input: standardised."
        )
    top = facts["largest_dimensions"][0]
    if top["share"] > 0.2:
        warnings.append(
            f"Dimension {top['dimension']} alone carries {top['share']:.0%} of the variance: FVU mostly measures "
            "this one dimension."
        )
    if facts["outlier_patches"] > 0.005:
        warnings.append(
            f"{facts['outlier_patches']:.1%} of the patch tokens have a norm above {OUTLIER} times the median: "
            "artefact tokens, on which some latents will specialise."
        )
    return warnings
