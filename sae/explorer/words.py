"""What the explorer says of a latent in words: what is known, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

FOUND = 0.5  # correlation with the counterpart of another seed; as in `matching.fates`

_ROLES = {
    "prefix": "it fires on class or register tokens rather than on patches",
    "artefact": "it fires on tokens of unusually large norm, which carry little of what a patch shows",
    "position": "it fires by place in the image (a row, a column or a patch), whatever is shown there",
    "border": "it fires along the border of the image, whatever is shown there",
}


def headline(fact: Mapping[str, Any], best: pd.Series | None, other: pd.Series | None = None) -> str:
    """Returns in one sentence what a latent responds to, as far as is known.

    Args:
        fact: its row of latents.parquet.
        best: the row of classes.parquet of the tested class with the highest MCC on train images; None: there is none.
        other: the row of the confirmed class with the highest one, if that is another.
    """
    if fact["status"] == "dead":
        return "Dead: it fires on no token of any image, so there is nothing to be said of it."
    if fact["role"]:
        return f"Probably no feature of what images show: {_ROLES[fact['role']]}."
    if best is None:
        return "No class is known for it: none in whose train images it fires has enough images to be tested."
    name = _class(best)
    if not best["confirmed"]:
        if other is not None:
            return f"The class that fits best, {name}, is not confirmed on held-out images; {_class(other)} is."
        return f"No class is confirmed for it. The best on train images, {name}, may be chance on held-out ones."
    right, flagged, support = (int(best[c]) for c in ("right_held_out", "flagged_held_out", "support_held_out"))
    return (
        f"Responds to {name}: of {flagged} held-out images on which it fires strongly {right} show it, "
        f"of {support} that show it, it finds {right}."
    )


def checks(
    fact: Mapping[str, Any], best: pd.Series | None, score: pd.Series, cause: pd.Series | None
) -> list[tuple[str, str]]:
    """Returns what speaks for and against a latent: pairs of `yes`, `no` or `open`, and a sentence.

    Nothing for a dead one.

    Args:
        fact, best: see `headline`.
        score: its row of scores.parquet.
        cause: its row of causes.parquet; None where it was not drawn.
    """
    if fact["status"] == "dead":
        return []
    return [_class_check(best), _stability(fact), _alike(score), _effect(cause)]


def _class_check(best: pd.Series | None) -> tuple[str, str]:
    if best is None:
        return "open", "Class: none could be tested."
    usual = best["support_held_out"] / best["images_held_out"]
    if not best["flagged_held_out"]:
        return "no", f"It flags no held-out image, so nothing confirms {_class(best)} (q = {best['q']:.2g})."
    shown = f"{best['precision_held_out']:.0%} of the held-out images that it flags show {_class(best)}"
    return "yes" if best["confirmed"] else "no", f"{shown}, {usual:.0%} of all do (q = {best['q']:.2g})."


def _stability(fact: Mapping[str, Any]) -> tuple[str, str]:
    seeds, r = len(fact["partner_seeds"]), fact["stability_correlation"]
    others = "another seed" if seeds == 1 else f"{seeds} other seeds"
    if pd.isna(r):
        return "open", f"Found again with {others}? It fires on no held-out token."
    verdict = "Found" if r >= FOUND else "Not found"
    text = f"{verdict} again with {others}: correlation {r:.2f} with its counterpart."
    return "yes" if r >= FOUND else "no", text


def _alike(score: pd.Series) -> tuple[str, str]:
    value, usual = score["monosemanticity"], score["monosemanticity_chance"]
    spread = score["monosemanticity_deviation"]
    if pd.isna(value) or not spread > 0:
        return "open", "Are its images alike? It fires on too few to say."
    above = (value - usual) / spread
    verdict = "are more alike than" if above > 2 else "are no more alike than"
    text = f"Its images {verdict} any: {value:.3f}, {above:+.1f} deviations from chance."
    return "yes" if above > 2 else "no", text


def _effect(cause: pd.Series | None) -> tuple[str, str]:
    if cause is None:
        return "open", "Effect on the ViT not measured: it was not among the latents drawn for ablation."
    if pd.isna(cause["ratio"]):
        return "open", f"Taking it out moves the ViT's output by {cause['size']:.2g}, the control by nothing."
    text = f"Taking it out moves the ViT's output {cause['ratio']:.2g} times as far as a random latent of the same norm"
    return "yes" if cause["size"] > cause["size_control"] else "no", f"{text} ({cause['images']} images)."


def _class(best: pd.Series) -> str:
    kind = "" if best["attribute"] == "label" else f"{best['attribute']} "
    return f"{kind}“{best['name']}”"
