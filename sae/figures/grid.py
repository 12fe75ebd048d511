"""The figures that compare the grid's points."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sae.figures.latents import BASELINE_MARKS, INK, colours, plain_numbers

_FAINT = {"alpha": 0.45, "ms": 4, "linestyle": "none"}
_MARKS = ("o-", "s--", "^-.", "D:", "v-")  # methods


def layers(table: pd.DataFrame, intervals: pd.DataFrame) -> Figure:
    """The comparison across the grid.

    Args:
        table: a row per grid point (metrics/P.parquet together).
        intervals: low and high of the FVU per layer, k and method (means over seeds), from `summary.table`.
    """
    figure, axes = plt.subplots(2, 3, figsize=(13, 7))
    every_layer, every_k = sorted(table["layer"].unique()), sorted(table["k"].unique())
    by_layer, by_k = colours("layer", every_layer), colours("k", every_k)
    # A mark per method; means are over seeds. Baselines are small and faint, without lines.
    found = sorted(table["method"].unique())
    methods = dict(zip((m for m in found if m not in BASELINE_MARKS), _MARKS, strict=False))
    baselines = {method: BASELINE_MARKS[method] for method in BASELINE_MARKS if method in found}
    mean = table.groupby(["layer", "k", "method"], as_index=False).mean(numeric_only=True)

    ax = axes[0, 0]
    for layer in every_layer:
        for method, mark in methods.items():
            part = mean[(mean["layer"] == layer) & (mean["method"] == method)].sort_values("l0")
            name = f"layer {layer}" if mark == _MARKS[0] else None
            ax.plot(part["l0"], part["fvu"], mark, color=by_layer[layer], label=name, zorder=3)
        for method, mark in baselines.items():
            part = mean[(mean["layer"] == layer) & (mean["method"] == method)]
            ax.plot(part["l0"], part["fvu"], mark, color=by_layer[layer], **_FAINT)
    ax.set(
        title="Sparsity against fidelity, by layer",
        xlabel="L0: latents active per token",
        ylabel="FVU (lower is better)",
        yscale="log",
    )
    plain_numbers(ax.yaxis)
    ax.set(xscale="log", xlim=(0.7 * mean["l0"].min(), 1.4 * mean["l0"].max()))
    ax.set_xticks(every_k, map(str, every_k))
    ax.set_xticks([], minor=True)
    ax.legend()

    panels = [
        (axes[0, 1], "fvu", "Variance left unexplained", "FVU (lower is better; bands: 95 %)", None),
        (axes[0, 2], "dead", "Latents silent on all held-out tokens", "share of all latents", None),
        (
            axes[1, 0],
            "top1_agreement",
            "The ViT with the SAE put back agrees",
            "top-1 agreement with the untouched ViT",
            "top1_agreement_mean_ablated",
        ),
        (axes[1, 1], "ce_recovered_mean", "Cross-entropy kept (1: all)", "recovered, against mean ablation", None),
        (axes[1, 2], "accuracy", "Accuracy through the SAE", "accuracy on held-out images", "accuracy_clean"),
    ]
    for ax, column, title, unit, reference in panels:
        for k in every_k:
            for method, mark in methods.items():
                part = mean[(mean["k"] == k) & (mean["method"] == method)].sort_values("layer")
                name = f"k = {k}" if mark == _MARKS[0] else None
                if column == "fvu":
                    band = intervals[(intervals["k"] == k) & (intervals["method"] == method)].sort_values("layer")
                    ax.fill_between(band["layer"], band["low"], band["high"], color=by_k[k], alpha=0.25, linewidth=0)
                ax.plot(part["layer"], part[column], mark, color=by_k[k], label=name, zorder=3)
            for method, mark in baselines.items():
                part = mean[(mean["k"] == k) & (mean["method"] == method)]
                ax.plot(part["layer"], part[column], mark, color=by_k[k], **_FAINT)
        if reference is not None:
            part = mean.groupby("layer", as_index=False)[reference].mean()
            words = "untouched ViT" if reference == "accuracy_clean" else "tokens replaced by their mean"
            ax.plot(part["layer"], part[reference], ":", color=INK, label=words)
        ax.set(title=title, xlabel="layer", ylabel=unit)
        ax.set_xticks(every_layer)
        if mean[column].isna().all():
            ax.text(
                0.5, 0.5, "not known for this model\nand these images", transform=ax.transAxes, ha="center", color=INK
            )
        if column == "fvu":
            ax.set_yscale("log")
            plain_numbers(ax.yaxis)
        elif column == "ce_recovered_mean":
            ax.set_ylim(min(0, 1.1 * mean[column].min()), 1.08)
        else:
            ax.set_ylim(
                0, max(0.05, 1.08 * np.nanmax(mean[[c for c in (column, reference) if c]].to_numpy(), initial=0))
            )
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if len(methods) > 1:
        for method, mark in methods.items():
            axes[0, 1].plot([], [], mark, color=INK, label=method)
    axes[0, 1].legend()
    for ax in axes[1, [0, 2]]:
        ax.legend(fontsize=8)
    if baselines:
        marks = [axes[1, 1].plot([], [], mark, color=INK, **_FAINT, label=name)[0] for name, mark in baselines.items()]
        figure.legend(
            marks, list(baselines), title="baselines, in the same colours", ncols=6, loc="outside lower center"
        )
    points, seeds = int(table["method"].isin(methods).sum()), table["seed"].nunique()
    beside = " beside their baselines" if baselines else ""
    over = f", means over {seeds} seeds" if seeds > 1 else ""
    size = f"{table['tokens'].iloc[0]:,} tokens of held-out images, {table['images'].iloc[0]:,} of them through the ViT"
    figure.suptitle(
        f"Layers compared: {points} SAEs{beside} on {size}{over}",
        x=0.01,
        ha="left",
        fontweight="bold",
    )
    return figure


def other_ks(table: pd.DataFrame) -> Figure:
    """FVU against the number of latents kept; table has a row per grid point and at_k (other_ks/P.parquet together)."""
    layers, methods = sorted(table["layer"].unique()), dict(zip(sorted(table["method"].unique()), _MARKS, strict=False))
    every_k = sorted(table["k"].unique())
    by_k = colours("k", every_k)
    columns = min(4, len(layers))
    figure, axes = plt.subplots(
        -(-len(layers) // columns), columns, figsize=(3.4 * columns + 1, 3.4 * -(-len(layers) // columns)),
        squeeze=False, sharey=True,
    )  # fmt: skip
    mean = table.groupby(["layer", "k", "method", "at_k"], as_index=False).mean(numeric_only=True)
    ticks = sorted(table["at_k"].unique())
    for ax, layer in zip(axes.flat, layers, strict=False):
        for k in every_k:
            for method, mark in methods.items():
                part = mean[(mean["layer"] == layer) & (mean["k"] == k) & (mean["method"] == method)]
                name = f"trained for k = {k}" + (f", {method}" if len(methods) > 1 else "")
                ax.plot(part["at_k"], part["fvu"], mark[1:], marker=".", color=by_k[k], label=name)
                own = part[part["at_k"] == k]
                ax.plot(own["at_k"], own["fvu"], "o", ms=10, mfc="none", color=by_k[k])
        ax.set(title=f"layer {layer}", xlabel="latents kept per token", xscale="log")
        ax.set_xticks(ticks, map(str, ticks))
        ax.set_xticks([], minor=True)
        ax.set_ylim(0, 1.05 * min(1.5, mean["fvu"].max()))
    for ax in axes.flat[len(layers) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("held-out FVU (lower is better)")
    axes.flat[0].legend(fontsize=8)
    figure.suptitle("Each SAE with more or fewer latents than it was trained for", x=0.01, ha="left", fontweight="bold")
    return figure
