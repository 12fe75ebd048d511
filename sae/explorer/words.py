"""The explorer's texts: its columns, numbers and filters, and the sentences about each latent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sae.evidence.measures import DENSE, FOUND, ONE_FACTOR


@dataclass(frozen=True)
class Column:
    """A number or text of a latent; unit: `id`, `text`, `share` (shown as a percentage) or `number`."""

    name: str
    unit: str
    sentence: str


@dataclass(frozen=True)
class Filter:
    """A filter of the table: it keeps latents whose value in `column` is in `among`, above `above` or below `below`."""

    name: str
    sentence: str
    column: str
    among: tuple[Any, ...] = ()
    above: float | None = None
    below: float | None = None


_PAIRS = 5  # of images within which a latent has to change
# The table of latents: the key of each column in a point's table.js, in order.
COLUMNS = {
    "latent": Column("latent", "id", "Row of the decoder matrix W_dec, counted from 0."),
    "class": Column(
        "class",
        "text",
        "The class with the highest MCC on train images, if a test on held-out images confirms it (false discovery "
        "rate 5 % over all latents and classes).",
    ),
    "mcc": Column(
        "selectivity",
        "number",
        "Matthews correlation (MCC) between the latent and its best class on held-out images. 0: chance; 1: perfect. "
        "Also given for classes that are not confirmed; empty where no class has enough images to be tested.",
    ),
    "density": Column("density", "share", f"Share of the held-out tokens on which it fires. Dense: above {DENSE:.0%}."),
    "images": Column("images", "share", "Share of all images on which it fires on at least one token."),
    "max": Column("max", "number", "Largest activation on any token, in the SAE's units."),
    "stability": Column(
        "stability",
        "number",
        f"Correlation on held-out tokens with its counterparts in the SAEs of other seeds. Unstable: below {FOUND}.",
    ),
    "monosemanticity": Column(
        "monosemanticity",
        "number",
        "Similarity of the images on which it fires, by an embedding of whole images. 0: as similar as any two "
        "images; 1: identical.",
    ),
    "coherence": Column(
        "coherence",
        "number",
        "Whether it fires on patches that lie together, on held-out images (Moran's I). 1: neighbours are alike; about "
        "0: as for shuffled patches.",
    ),
    "effect": Column(
        "effect (estimated)",
        "number",
        "Estimated effect on the ViT's predictions, divided by that of a random latent of the same norm. The estimate "
        "is a gradient times the activation; a latent's page shows measured effects where there are any.",
    ),
    "token_type": Column(
        "token type",
        "text",
        "The property of tokens, other than their content, that explains most of its firing: position, border, "
        "prefix (class and register tokens) or artefact (tokens of unusual norm). Empty: none of these.",
    ),
}

FILTERS = (
    Filter("dead", "Fires on no token of any image.", "alive", among=(0,)),
    Filter("dense", f"Fires on more than {DENSE:.0%} of the held-out tokens.", "density", above=DENSE),
    Filter(
        "position-driven",
        "Fires at certain positions or along the border of the image, whatever the image shows there.",
        "token_type",
        among=("position", "border"),
    ),
    Filter(
        "artefact or prefix",
        "Fires on tokens of unusual norm, or on class and register tokens.",
        "token_type",
        among=("artefact", "prefix"),
    ),
    Filter(
        "unstable",
        f"Correlates below {FOUND} with its counterparts in the SAEs of other seeds.",
        "stability",
        below=FOUND,
    ),
    Filter(
        "no confirmed class",
        "Has no class that a test on held-out images confirms.",
        "class",
        among=(None,),
    ),
)

# The columns of latents.parquet on the tokens on which a latent fires.
ON = {
    "on_class": Column("on class tokens", "share", "Share of its firing tokens that are class tokens."),
    "on_register": Column("on registers", "share", "Share of its firing tokens that are other prefix tokens."),
    "on_patch": Column("on patches", "share", "Share of its firing tokens that are patches."),
    "on_border": Column("on the border", "share", "Share of its firing patches that lie at the border of the image."),
    "on_high_norm": Column(
        "on high norms",
        "share",
        "Share of its firing tokens with a norm above four times the median of the patches.",
    ),
    "by_row": Column(
        "by row",
        "number",
        "Total variation distance between the rows in which it fires and all rows, minus the distance expected by "
        "chance. 0: it fires equally often in all rows; near 1: in one row only.",
    ),
    "by_column": Column("by column", "number", "The same distance for columns."),
    "by_place": Column("by patch", "number", "The same distance for single patches."),
}

PANELS = {
    "top": "Strongest images",
    "q75": "Around its upper quartile",
    "q50": "Around its median",
    "q25": "Around its lower quartile",
    "silent": "Random images on which it is silent",
}

# By token type: where such a latent fires, and what its firing follows.
_TOKEN_TYPES = {
    "prefix": ("on class or register tokens, not on patches", "the kind of token"),
    "artefact": ("on tokens of unusually large norm, which hold little of their patch's content", "the norm"),
    "position": ("at certain positions (a row, a column or a patch), whatever the image shows there", "the position"),
    "border": ("along the border, whatever the image shows there", "the border"),
}


def headline(fact: Mapping[str, Any], best: Mapping[str, Any] | None, other: Mapping[str, Any] | None = None) -> str:
    """Returns one sentence on the images to which a latent responds, with the evidence for it.

    Args:
        fact: its row of latents.parquet.
        best: the row of classes.parquet of the tested class with the highest MCC on train images; None if no class
            was tested.
        other: the row of the confirmed class with the highest MCC; None if that is `best` or if there is none.
    """
    if fact["status"] == "dead":
        return "Dead: it fires on no token of any image."
    if fact["token_type"]:
        return f"Probably not a visual feature: it fires {_TOKEN_TYPES[fact['token_type']][0]}."
    if best is None:
        return "No class could be tested: all classes on whose images it fires have too few images."
    name = _class(best)
    if not best["confirmed"]:
        if other is not None:
            return f"Its best class on train images, {name}, is not confirmed on held-out images; {_class(other)} is."
        return f"No class is confirmed: its best class on train images, {name}, may be a coincidence."
    right, flagged, support = (int(best[c]) for c in ("right_held_out", "flagged_held_out", "support_held_out"))
    return (
        f"Responds to {name}: it flags {right} of the {support} held-out images of this class, "
        f"and {flagged} held-out images in all."
    )


def checks(
    fact: Mapping[str, Any],
    best: Mapping[str, Any] | None,
    monosemanticity: Mapping[str, Any],
    intervention: Mapping[str, Any] | None,
) -> list[tuple[str, str]]:
    """Returns the evidence for and against a latent: pairs of a verdict (`yes`, `no`, `open`) and a sentence.

    The list is empty for a dead latent.

    Args:
        fact, best: see `headline`.
        monosemanticity: its row of monosemanticity.parquet.
        intervention: its row of interventions.parquet; None where it was not in the sample.
    """
    if fact["status"] == "dead":
        return []
    return [
        _class_check(best, fact["token_type"]),
        _stability(fact),
        _similarity(monosemanticity),
        _effect(intervention) if intervention is not None else _estimate(fact),
        *([_one_factor(fact)] if pd.notna(fact["factor_pairs"]) else []),
    ]


def _class_check(best: Mapping[str, Any] | None, token_type: str) -> tuple[str, str]:
    if best is None:
        return "open", "No class could be tested."
    if not best["flagged_held_out"]:
        return "no", f"It flags no held-out image, so nothing confirms {_class(best)} (q = {best['q']:.2g})."
    base_rate = best["support_held_out"] / best["images_held_out"]
    text = (
        f"{best['precision_held_out']:.0%} of the {best['flagged_held_out']:,} held-out images that it flags show "
        f"{_class(best)}; {base_rate:.0%} of all held-out images do (q = {best['q']:.2g})."
    )
    if best["confirmed"] and token_type:
        return "open", f"{text} But its firing follows {_TOKEN_TYPES[token_type][1]}, which may be the cause."
    return "yes" if best["confirmed"] else "no", text


def _stability(fact: Mapping[str, Any]) -> tuple[str, str]:
    seeds, r = len(fact["partner_seeds"]), fact["stability_correlation"]
    if not seeds:
        return "open", "Its reproducibility is unknown: this SAE was imported, without another seed of it."
    others = "another seed" if seeds == 1 else f"{seeds} other seeds"
    if pd.isna(r):
        return "open", f"Its reproducibility with {others} is unknown: it fires on no held-out token."
    verdict = "Reproduced" if r >= FOUND else "Not reproduced"
    return "yes" if r >= FOUND else "no", f"{verdict} with {others}: correlation {r:.2f} with its counterpart."


def _similarity(row: Mapping[str, Any]) -> tuple[str, str]:
    value, chance, spread = (row[f"monosemanticity{suffix}"] for suffix in ("", "_chance", "_deviation"))
    if pd.isna(value) or not spread > 0:
        return "open", "The similarity of its images is unknown: it fires on too few images."
    above = (value - chance) / spread
    verdict = "more" if above > 2 else "no more"
    text = (
        f"Its images are {verdict} similar than random ones: similarity {value:.3f}, {above:+.1f} standard deviations "
        "from chance."
    )
    return "yes" if above > 2 else "no", text


def _estimate(fact: Mapping[str, Any]) -> tuple[str, str]:
    effect, control = fact["estimated_effect"], fact["estimated_control"]
    if pd.isna(effect) or not control > 0:
        return "open", "Its effect on the ViT's predictions is unknown: neither measured nor estimated."
    text = (
        f"Estimated: it changes the ViT's predictions {effect / control:.2g} times as much as a random latent of the "
        "same norm. Its removal was not measured."
    )
    return "yes" if effect > control else "no", text


def _one_factor(fact: Mapping[str, Any]) -> tuple[str, str]:
    share = fact["factor_share"]
    if pd.isna(share):
        return "open", "It changes within too few pairs of images that differ in one factor alone."
    text = (
        f"Of its changes within pairs of images that differ in one factor alone, {share:.0%} are by {fact['factor']}."
    )
    enough = share >= ONE_FACTOR and fact["factor_pairs"] >= _PAIRS
    return "yes" if enough else "open", text


def _effect(intervention: Mapping[str, Any]) -> tuple[str, str]:
    if pd.isna(intervention["ratio"]):
        return (
            "open",
            f"Measured: removing it changes the ViT's output by {intervention['size']:.2g}; the control does nothing.",
        )
    text = (
        f"Measured: removing it changes the ViT's output {intervention['ratio']:.2g} times as much as removing a "
        f"random latent of the same norm ({intervention['images']} images)."
    )
    return "yes" if intervention["size"] > intervention["size_control"] else "no", text


def _class(best: Mapping[str, Any]) -> str:
    kind = "" if best["attribute"] == "label" else f"{best['attribute']} "
    return f"{kind}“{best['name']}”"
