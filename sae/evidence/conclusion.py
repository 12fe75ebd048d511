"""The conclusion: the gain of the SAEs over the baselines, which may be none."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pandas as pd

from sae.evidence.measures import MEASURES

POINT = ["layer", "k", "method", "seed"]
_SAME_BY_CONSTRUCTION = ("neurons", "pca")  # they do not depend on the seed, so their stability means nothing


def against_best(compared: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of `summary.compare` against the best baseline: one per SAE and measure."""
    fair = ~((compared["measure"] == "stability") & compared["baseline"].isin(_SAME_BY_CONSTRUCTION))
    return compared[fair].sort_values([*POINT, "measure", "gain"]).drop_duplicates([*POINT, "measure"])


def sentences(best: pd.DataFrame) -> list[str]:
    """Returns the conclusion, a sentence on all measures and one on each, from the table of `against_best`."""
    points = len(best[POINT].drop_duplicates())
    at_points = f"{points} grid point{'s' if points > 1 else ''}"
    bought, lost, lines = [], [], []
    for measure in (m for m in MEASURES.values() if m.key in set(best["measure"])):
        part = best[best["measure"] == measure.key]
        counts = part["verdict"].value_counts()
        better, worse, undecided = (int(counts.get(verdict, 0)) for verdict in ("better", "worse", "open"))
        if better > len(part) / 2:
            bought.append(measure.name)
        if worse > len(part) / 2:
            lost.append(measure.name)
        rivals = ", ".join(part.loc[part["verdict"] != "better", "baseline"].value_counts().index)
        line = f"{measure.name[0].upper()}{measure.name[1:]}: better than every baseline at {better} of {len(part)} "
        line += f"grid points, worse than the best one at {worse}, undecided at {undecided}"
        lines.append(line + (f" (best baseline there: {rivals})." if rivals else "."))
    first = f"Over {at_points}, the SAE gains nothing: no measure is better than the best baseline at most of them."
    if bought:
        first = f"Over {at_points}, the SAE is mostly better than every baseline in: {'; '.join(bought)}."
    if lost:
        first += f" A baseline is mostly better in: {'; '.join(lost)}."
    return [first, *lines]


def page(summaries: pd.DataFrame, compared: pd.DataFrame, name: str) -> str:
    """Returns the conclusion as an HTML page that needs no other file.

    Args:
        summaries: tables of `summary.table` with layer, k, method and seed; SAEs and baselines.
        compared: from `summary.compare`.
        name: of the experiment.
    """
    best = against_best(compared)
    values = summaries.set_index([*POINT, "measure"])[["value", "low", "high"]].to_dict("index")
    points = []
    for (layer, k, method, seed), rows in best.groupby(POINT, sort=True):
        at_point = summaries[(summaries["layer"] == layer) & (summaries["k"] == k) & (summaries["seed"] == seed)]
        rivals = [m for m in at_point["method"].unique() if m in set(compared["baseline"])]
        verdicts = rows.set_index("measure").to_dict("index")
        measures = [
            {
                "measure": measure,
                "cells": [values.get((layer, k, dictionary, seed, key)) for dictionary in [method, *rivals]],
                "verdict": verdicts.get(key),
            }
            for key, measure in MEASURES.items()
            if (layer, k, method, seed, key) in values
        ]
        points.append({"layer": layer, "k": k, "method": method, "seed": seed, "rivals": rivals, "measures": measures})
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text())
    return template.render(name=name, sentences=sentences(best), points=points)
