"""The figure of the conclusion: SAEs beside the baselines, measure by measure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sae.evidence.measures import COMPARED, MEASURES
from sae.figures.style import ACCENT, BASELINE_MARKS, INK, QUIET, headline, plain_numbers, styled


@styled
def conclusion(summaries: pd.DataFrame, methods: Sequence[str], title: str) -> Figure:
    """A panel per measure: SAEs with their intervals beside the baselines, over the grid's layers and ks.

    Args:
        summaries: tables of `summary.table` with layer, k, method and seed.
        methods: the SAEs'; all other methods are baselines.
    """
    measures = [MEASURES[key] for key in COMPARED if key in set(summaries["measure"])]
    mean = summaries.groupby(["measure", "layer", "k", "method"], as_index=False)[["value", "low", "high"]].mean()
    places = {point: i for i, point in enumerate(sorted({*zip(mean["layer"], mean["k"], strict=True)}))}
    rows = -(-len(measures) // 2)
    figure = Figure(figsize=(12, 0.6 + 2.5 * rows))
    axes = figure.subplots(rows, 2, squeeze=False)
    for ax in axes.flat[len(measures) :]:
        ax.set_axis_off()
    for ax, measure in zip(axes.flat, measures, strict=False):
        for method, part in mean[mean["measure"] == measure.key].groupby("method", sort=False):
            x = np.array([places[point] for point in zip(part["layer"], part["k"], strict=True)])
            if method in methods:
                x = x + 0.12 * (methods.index(method) - (len(methods) - 1) / 2)
                error = np.abs(part[["low", "high"]].to_numpy() - part[["value"]].to_numpy()).T
                ax.errorbar(x, part["value"], error, fmt="o", color=ACCENT, label=f"SAE ({method})", zorder=3)
            else:
                colour = INK if method == "pca" else QUIET
                ax.plot(x, part["value"], BASELINE_MARKS[method], color=colour, label=method, ms=6)
        if measure.log:
            ax.set_yscale("log")
            plain_numbers(ax.yaxis)
        elif measure.unit == "share":
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        direction = "higher" if measure.higher else "lower"
        ax.set_title(f"{measure.name[0].upper()}{measure.name[1:]}: {direction} is better")
        ax.set_xticks(list(places.values()), [f"layer {layer}\nk {k}" for layer, k in places])
        ax.margins(x=0.08)
        ax.grid(axis="x", visible=False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    headline(figure, f"{title} (bars: 95 % intervals)")
    return figure
