"""One layer: its statistics before training, and all values that depend on the layer but on no dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae import images
from sae.errors import InputError
from sae.files import read_arrays, read_json, write_arrays
from sae.geometry import Geometry
from sae.store import OUTLIER, Activations, moments, scale

# Norms are counted in fine bins, 0.6 % wide, so that quantiles need no list of all tokens; figures get coarse ones.
_NORM_EDGES = 10 ** (np.arange(-8 * 400, 20 * 400 + 1) / 400)
_NORM_BINS_PER_BAR = 40
_SHOWN = slice(7 * 400, 12 * 400)  # the bins of the figures, from 0.1 to 10,000
_MOST_PROBED = 4000


@dataclass(frozen=True)
class Layer:
    """One layer's store of activations and the facts about its images.

    Attributes:
        shards: all activation shards of the layer.
        manifest: of all images.
        reference: reference.json, the facts about the untouched ViT.
        statistics: statistics.json.
    """

    shards: Sequence[str | Path]
    manifest: pd.DataFrame
    reference: Mapping[str, Any]
    statistics: Mapping[str, Any]

    @cached_property
    def geometry(self) -> Geometry:
        """The geometry of the ViT."""
        return Geometry(**self.reference["geometry"])

    @property
    def selected(self) -> slice:
        """The tokens of an image that the dictionaries of this run read."""
        return self.geometry.select(self.statistics["tokens"])

    @cached_property
    def sample(self) -> np.ndarray:
        """The held-out images that went through the ViT: their ids, int64 [m], ascending."""
        return np.array(self.reference["ids"], np.int64)

    @cached_property
    def held_out(self) -> np.ndarray:
        """The ids of the ranked held-out images, int64 [images], ascending."""
        return self.ranked.loc[self.ranked["split"] == images.HELD_OUT, "id"].to_numpy()

    @cached_property
    def train(self) -> np.ndarray:
        """The ids of the ranked train images, int64 [images], ascending."""
        return self.ranked.loc[self.ranked["split"] == images.TRAIN, "id"].to_numpy()

    @cached_property
    def ranked(self) -> pd.DataFrame:
        """The manifest's rows of the ranked images, by id; see `images.ranked`."""
        return images.ranked(self.manifest, self.sample)

    @property
    def centre(self) -> tuple[np.ndarray, float]:
        """The train set's mean vector [d] and scale."""
        return np.array(self.statistics["mean"]), self.statistics["scale"]

    def tokens(self, which: str, ids: Sequence[int] | np.ndarray) -> Activations:
        """Returns these tokens of these images. The shards were checked when the statistics were made."""
        return Activations.open(self.shards, which, ids, verify=False)


@dataclass(frozen=True)
class LayerFacts:
    """The values that depend on a layer but on no dictionary.

    Attributes:
        variance: of the ranked held-out tokens by dimension, float64 [d].
        spread: Σ‖x - mean‖² over the tokens of each image of the sample, float64 [m]; the mean is the sample's.
        clean, mean, zero: the ViT's outputs for the sample, float32 [m, outputs], going on from the stored
            activations as they are, with every token replaced by the train set's mean, and by 0.
        null_directions, null_tokens: see `matching.null_stability`, [F]; the latter is empty where there are too few.
    """

    variance: np.ndarray
    spread: np.ndarray
    clean: np.ndarray
    mean: np.ndarray
    zero: np.ndarray
    null_directions: np.ndarray
    null_tokens: np.ndarray

    def save(self, path: str | Path) -> None:
        """Writes layer.safetensors."""
        write_arrays(path, vars(self))

    @classmethod
    def load(cls, path: str | Path) -> LayerFacts:
        """Returns the facts that `save` wrote; raises InputError where the file is damaged."""
        return cls(**read_arrays(path)[0])


def facts(layer: Layer, vit: Any, number: int, latents: int, batch: int) -> LayerFacts:
    """Computes a layer's facts.

    Args:
        vit: the ViT.
        number: of the layer.
        latents: F of the SAEs, for the null of stability.
        batch: images in one forward pass.

    Raises:
        InputError: all held-out tokens are the same.
    """
    from sae.evidence import matching, splice

    kind = layer.statistics["tokens"]
    x = layer.tokens(kind, layer.sample)
    centre = moments(x)[0]
    blocks = (np.square(block.astype(np.float64) - centre).sum((1, 2)) for _ids, block in x.blocks(64))
    spread = np.concatenate([*blocks])
    variance = moments(layer.tokens(kind, layer.held_out))[1]
    if not variance.any() or not spread.any():
        raise InputError(
            f"{layer.shards[0]}: all held-out tokens have the same activation, so no share of their variance can be "
            "measured; raise held_out or evaluation.images, or add images"
        )
    outputs = splice.ablated(vit, layer.tokens("all", layer.sample), number, layer.selected, layer.centre[0], batch)
    train = layer.tokens(kind, layer.train)
    tokens = train.read(np.arange(min(len(train), -(-20 * latents // train.tokens)))).reshape(-1, train.width)
    nulls = matching.null_stability(latents, tokens.astype(np.float32), np.random.default_rng(0))
    return LayerFacts(
        variance=variance,
        spread=spread,
        **outputs,
        null_directions=nulls["random directions"],
        null_tokens=nulls.get("random tokens", np.empty(0)),
    )


def probed(rows: pd.DataFrame) -> np.ndarray:
    """Returns the places of the ranked images that probes read, [n], at most 4,000."""
    return np.flatnonzero(rows["id"].isin(images.sample(rows, _MOST_PROBED)["id"]))


def dense_features(layer: Layer) -> np.ndarray:
    """Returns mean and maximum over each probed image's tokens, float32 [n, 2d]."""
    x = layer.tokens(layer.statistics["tokens"], layer.ranked["id"].to_numpy()[probed(layer.ranked)])
    parts = [np.concatenate([block.astype(np.float32).mean(1), block.max(1)], 1) for _ids, block in x.blocks(256)]
    return np.concatenate(parts).astype(np.float32)


def statistics(
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
