"""The figures that compare the grid's points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sae.figures.style import BASELINE_MARKS, INK, colours, headline, plain_numbers, say, styled

_FAINT: dict[str, Any] = {"alpha": 0.7, "ms": 5, "linestyle": "none", "fillstyle": "none"}
_MARKS = ("o-", "s--", "^-.", "D:", "v-", "P--")  # methods
# Column: title, label of the y-axis, the column drawn for reference, its name.
_PANELS = {
    "fvu": ("Unexplained variance", "FVU (lower is better; bands: 95 %)", None, None),
    "dead": ("Dead latents", "share of latents that never fire", None, None),
    "top1_agreement": (
        "Does the ViT predict the same class?",
        "top-1 agreement with the untouched ViT",
        "top1_agreement_mean_ablated",
        "mean token instead",
    ),
    "ce_recovered_mean": ("Cross-entropy recovered", "1: untouched ViT; 0: mean token", None, None),
    "accuracy": ("Accuracy of the ViT", "accuracy on held-out images", "accuracy_clean", "untouched ViT"),
}


@styled
def layers(table: pd.DataFrame, intervals: pd.DataFrame) -> Figure:
    """The comparison across the grid: a line per method, means over seeds, and the best baseline beside each point.

    Args:
        table: a row per grid point (metrics/P.parquet together).
        intervals: low and high of the FVU per layer, k and method (means over seeds), from `summary.table`.
    """
    every_k = sorted(table["k"].unique())
    by_k = colours("k", every_k)
    names = sorted(table["method"].unique())
    methods = _marked([method for method in names if method not in BASELINE_MARKS])
    baselines = {method: mark for method, mark in BASELINE_MARKS.items() if method in names}
    mean = table.groupby(["layer", "k", "method"], as_index=False).mean(numeric_only=True)
    figure = Figure(figsize=(13, 7))
    axes, shown = figure.subplots(2, 3), set()

    def draw(ax: Axes, part: pd.DataFrame, x: str, y: str, colour: tuple[float, ...], name: str) -> None:
        for number, (method, mark) in enumerate(methods.items()):
            rows = part[part["method"] == method].sort_values(x)
            ax.plot(rows[x], rows[y], mark, color=colour, label=None if number else name, zorder=3)
        rivals = part[part["method"].isin(baselines) & part[y].notna()]
        if y != "dead":  # of no use by itself: random directions never die
            best = rivals.groupby(["layer", "k"])[y].agg("idxmin" if y == "fvu" else "idxmax")
            for method, rows in rivals.loc[best].groupby("method"):
                ax.plot(rows[x], rows[y], baselines[method], color=colour, **_FAINT)
                shown.add(method)

    ax = axes[0, 0]
    for layer, colour in colours("layer", table["layer"]).items():
        draw(ax, mean[mean["layer"] == layer], "l0", "fvu", colour, f"layer {layer}")
    ax.set(
        title="Unexplained variance against sparsity",
        xlabel="L0: active latents per token",
        ylabel="FVU (lower is better)",
        xscale="log",
        yscale="log",
        xlim=(0.7 * mean["l0"].min(), 1.4 * mean["l0"].max()),
    )
    plain_numbers(ax.yaxis)
    ax.set_xticks(every_k, map(str, every_k))
    ax.set_xticks([], minor=True)

    for ax, (column, (title, unit, reference, reference_name)) in zip(axes.flat[1:], _PANELS.items(), strict=True):
        for k in every_k:
            if column == "fvu":
                for method in methods:
                    band = intervals[(intervals["k"] == k) & (intervals["method"] == method)].sort_values("layer")
                    ax.fill_between(band["layer"], band["low"], band["high"], color=by_k[k], alpha=0.25, linewidth=0)
            draw(ax, mean[mean["k"] == k], "layer", column, by_k[k], f"k = {k}")
        if reference:
            part = mean.groupby("layer", as_index=False)[reference].mean()
            ax.plot(part["layer"], part[reference], ":", color=INK, label=reference_name)
        ax.set(title=title, xlabel="layer", ylabel=unit)
        ax.set_xticks(sorted(table["layer"].unique()))
        if mean[column].isna().all():
            words = "not known for this model\nand these images"
            ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", color=INK)
        if column == "fvu":
            ax.set_yscale("log")
            plain_numbers(ax.yaxis)
        elif column == "ce_recovered_mean":
            ax.set_ylim(min(0, 1.1 * mean[column].min()), 1.08)
        else:
            drawn = mean[mean["method"].isin(methods)] if column == "dead" else mean
            high = drawn[[name for name in (column, reference) if name]]
            highest = np.nanmax(high.to_numpy(), initial=0)
            ax.set_ylim(0, max(0.05, 1.08 * highest))
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if len(methods) > 1:
        for method, mark in methods.items():
            axes[0, 1].plot([], [], mark, color=INK, label=method)
    if shown:
        marks = [axes[1, 1].plot([], [], baselines[method], color=INK, **_FAINT)[0] for method in sorted(shown)]
        words = "the best baseline at each point, in the colour of the SAE"
        figure.legend(marks, sorted(shown), title=words, ncols=len(shown), loc="outside lower center")
    for ax in (axes[0, 0], axes[0, 1], axes[1, 0], axes[1, 2]):
        ax.legend(loc="best", fontsize=8, frameon=True, framealpha=0.8, edgecolor="none")
    points, seeds = int(table["method"].isin(methods).sum()), table["seed"].nunique()
    beside = " and their baselines" if baselines else ""
    over = f"; means over {seeds} seeds" if seeds > 1 else ""
    size = f"{table['tokens'].iloc[0]:,} held-out tokens (through the ViT: {table['images'].iloc[0]:,} images)"
    headline(figure, f"Layers compared: {points} SAEs{beside} on {size}{over}")
    return figure


def _marked(methods: Sequence[str]) -> dict[str, str]:
    assert len(methods) <= len(_MARKS)  # add a mark with each method
    return dict(zip(methods, _MARKS, strict=False))


@styled
def other_ks(table: pd.DataFrame) -> Figure:
    """FVU against the number of latents kept; table has a row per grid point and at_k (other_ks/P.parquet together)."""
    if table.empty:
        figure = Figure(figsize=(4.4, 3.7))
        say(figure.subplots(), "every number of evaluation.ks\nexceeds the number of latents")
        return figure
    layers, every_k = sorted(table["layer"].unique()), sorted(table["k"].unique())
    methods, by_k = _marked(sorted(table["method"].unique())), colours("k", every_k)
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    figure = Figure(figsize=(3.4 * columns + 1, 0.3 + 3.4 * rows))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    mean = table.groupby(["layer", "k", "method", "at_k"], as_index=False).mean(numeric_only=True)
    ticks = sorted(table["at_k"].unique())
    for ax, layer in zip(axes.flat, layers, strict=False):
        for k in every_k:
            for method, mark in methods.items():
                part = mean[(mean["layer"] == layer) & (mean["k"] == k) & (mean["method"] == method)]
                name = f"trained for k = {k}" + (f", {method}" if len(methods) > 1 else "")
                ax.plot(part["at_k"], part["fvu"], mark[1:], marker=".", color=by_k[k], label=name)
                trained = part[part["at_k"] == k]
                ax.plot(trained["at_k"], trained["fvu"], "o", ms=10, mfc="none", color=by_k[k])
        ax.set(title=f"layer {layer}", xlabel="latents kept per token", xscale="log")
        ax.set_xticks(ticks, map(str, ticks))
        ax.set_xticks([], minor=True)
        ax.set_ylim(0, 1.05 * min(1.5, mean["fvu"].max()))
    for ax in axes.flat[len(layers) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("FVU on held-out tokens (lower is better)")
    axes.flat[0].plot([], [], "o", ms=10, mfc="none", color=INK, label="the k of the training")
    axes.flat[0].legend(fontsize=8)
    headline(figure, "SAEs with fewer or more active latents than they were trained for")
    return figure
