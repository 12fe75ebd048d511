"""The conclusion: the gain of the SAEs over the baselines, which may be none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from sae.evidence.choice import HANDFUL
from sae.evidence.measures import COMPARED, MEASURES
from sae.evidence.summary import SEEDS

# Each with the mean over the grid.
_QUESTIONS = {
    "concept_recovery": "Do single latents find classes? The best latent of a class reaches an F1 of {} on average.",
    "class_selectivity": "Does a latent stand for one class? Its correlation with its best class is {} on average.",
    "stability": "Does another training find the same latents? The correlation with another seed's latents is {}.",
    "causal_size": "Does the ViT use them? The removal of a latent matters more than that of a random one for {}.",
}
POINT = ["layer", "k", "method", "seed"]
_SAME_BY_CONSTRUCTION = ("neurons", "pca")  # they do not depend on the seed, so their stability means nothing


def against_best(compared: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of `summary.compare` against the best baseline over the seeds: one per SAE and measure.

    An SAE is `better` if it is better than every baseline.
    """
    unfair = (compared["measure"] == "stability") & compared["baseline"].isin(_SAME_BY_CONSTRUCTION)
    rows = compared[~unfair].sort_values([*POINT, "measure", "mean_gain", "gain"])
    every = (rows["verdict"] == "better").groupby([rows[column] for column in [*POINT, "measure"]]).transform("all")
    rows["verdict"] = rows["verdict"].where((rows["verdict"] != "better") | every, "open")
    return rows.drop_duplicates([*POINT, "measure"])


def sentences(best: pd.DataFrame) -> list[str]:
    """Returns the conclusion from the table of `against_best`: the answer, and a paragraph for each question."""
    if not len(best):
        return ["Nothing can be compared."]
    points = len(best[POINT].drop_duplicates())
    measures = [key for key in COMPARED if key in set(best["measure"])]
    counts = best.groupby("measure")["verdict"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=["better", "worse", "open"], fill_value=0)
    share = counts.div(counts.sum(axis=1), axis=0) > 0.5
    won = [MEASURES[key].name for key in measures if share.loc[key, "better"]]
    lost = [MEASURES[key].name for key in measures if share.loc[key, "worse"]]
    where = f"at more than half of the {points} grid points" if points > 1 else "at the one grid point"
    first = f"The SAE gains nothing: by none of {len(measures)} measures is it better than every baseline {where}."
    if won:
        first = f"By {len(won)} of {len(measures)} measures, the SAE is better than every baseline {where}"
        first += f": {'; '.join(won)}."
    if lost:
        first += f" By {len(lost)}, a baseline is better: {'; '.join(lost)}."
    lines = [first]
    for key in (key for key in _QUESTIONS if key in measures):
        part = best[best["measure"] == key]
        rival = part["baseline"].value_counts().index[0]
        found, ours, theirs = counts.loc[key], part["value"].mean(), part["value_baseline"].mean()
        line = _QUESTIONS[key].format(_number(key, ours))
        line += f" The best baseline{f', most often {rival}' if points > 1 else f', {rival}'}: {_number(key, theirs)}. "
        line += f"Better than every baseline at {found['better']} of {len(part)} grid points, "
        lines.append(line + f"worse than the best at {found['worse']}, undecided at {found['open']}.")
    return lines


def _number(key: str, value: float) -> str:
    return f"{value:.0%}" if MEASURES[key].unit == "share" else f"{value:.2f}"


def rendered(template: str, title: str, sentences: Sequence[str], **values: Any) -> str:
    """Returns a page that begins with its answer: the first sentence large, the others as a list, then the template."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(frame="page.html", title=title, sentences=sentences, **values)


def page(summaries: pd.DataFrame, compared: pd.DataFrame, choice: pd.DataFrame, name: str) -> str:
    """Returns the conclusion as an HTML page that needs no other file.

    Args:
        summaries: tables of `summary.table` with layer, k, method and seed; SAEs and baselines.
        compared: from `summary.compare`.
        choice: from `choice.grid_points`.
        name: of the experiment.
    """
    best = against_best(compared)
    over_seeds = summaries.groupby(["layer", "k", "method", "measure"])["value"]
    summaries = summaries.assign(spread=over_seeds.transform("std").where(over_seeds.transform("size") >= SEEDS, 0.0))
    values = summaries.set_index([*POINT, "measure"])[["value", "low", "high", "spread"]].to_dict("index")
    points = []
    for (layer, k, method, seed), rows in best.groupby(POINT, sort=True):
        at_point = summaries[(summaries["layer"] == layer) & (summaries["k"] == k) & (summaries["seed"] == seed)]
        rivals = [m for m in at_point["method"].unique() if m in set(compared["baseline"])]
        verdicts = rows.set_index("measure").to_dict("index")
        measures = [
            {
                "measure": MEASURES[key],
                "cells": [values.get((layer, k, dictionary, seed, key)) for dictionary in [method, *rivals]],
                "verdict": verdicts.get(key),
            }
            for key in COMPARED
            if (layer, k, method, seed, key) in values
        ]
        points.append({"layer": layer, "k": k, "method": method, "seed": seed, "rivals": rivals, "measures": measures})
    asked = [MEASURES[key] for key in COMPARED if key in choice]
    return rendered(
        "conclusion.html",
        f"SAEs against baselines: {name}",
        sentences(best),
        choice=choice.astype(object).where(choice.notna(), None).to_dict("records"),
        asked=asked,
        number=_number,
        handful=HANDFUL,
        points=points,
        least=SEEDS,
    )
