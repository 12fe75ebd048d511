"""Figures of matched latents: across seeds, across k and across layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sae.evidence.matching import layer_summary
from sae.figures.style import ACCENT, CONTROL, INK, QUIET, headline, styled

# Outcome: its meaning, the colour of its bar, the colour of the number in it.
_OUTCOMES = {
    "same": ("same: each is the other's best match", INK, "white"),
    "split": ("split: several latents match it", ACCENT, "white"),
    "changed": ("changed: each is the other's best match, but a weak one", "#f0b490", INK),
    "merged": ("merged: its match has another latent as best match", "#6b7280", "white"),
    "lost": ("lost: it has no match", "#cfd3d8", INK),
    "dead": ("dead: it never fires", "#ffffff", INK),
}
_STEPS = {  # column of `layer_summary`: meaning, colour of the bar, of the number in it
    "appear": ("new: no match in the layer before", ACCENT, "white"),
    "persist": ("continues: a match in the next layer", INK, "white"),
    "end": ("ends: no match in the next layer", QUIET, INK),
}
_SHUFFLED = "control: images shuffled"


@styled
def stability(table: pd.DataFrame, nulls: dict[str, np.ndarray], title: str) -> Figure:
    """The stability of latents across seeds, beside that of dictionaries without training.

    Args:
        table: latents with their stability_cosine and partner_seeds; latents without a stability_correlation, which
            never fire, are left out.
        nulls: name -> cosines of the control's latents [n], from `null_stability`.
    """
    shown = table.loc[table["stability_correlation"].notna(), "stability_cosine"].to_numpy()
    series = {"these latents": shown} | {f"control, {name}": values for name, values in nulls.items()}
    looks = [(ACCENT, "-"), (INK, "--"), (QUIET, "-"), (QUIET, ":")]
    edges = np.linspace(min(0, *(values.min(initial=0) for values in series.values())), 1, 61)
    figure = Figure(figsize=(7.5, 3.8))
    axes = figure.subplots()
    for (name, values), (colour, line) in zip(series.items(), looks, strict=False):
        if not len(values):
            continue
        median = np.median(values)
        axes.stairs(
            np.histogram(values, edges)[0] / len(values),
            edges,
            color=colour,
            fill=values is shown,
            linestyle=line,
            linewidth=1.5,
            alpha=0.85,
            label=f"{name}: median {median:.2f}",
        )
        axes.axvline(median, color=colour, linestyle=line, linewidth=1)
    axes.set(
        xlabel="cosine with the matching latent of another seed (1: identical; mean over seeds)",
        ylabel="share of the latents",
        xlim=(edges[0], 1),
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    alone = not table["partner_seeds"].str.len().any()
    told = "imported, without another seed" if alone else f"{len(shown):,} of {len(table):,} latents fire"
    axes.legend(loc="best", title=told, alignment="left")
    headline(figure, title)
    return figure


@styled
def across_ks(tables: dict[str, pd.DataFrame], title: str) -> Figure:
    """The outcome of one SAE's latents in another SAE, a bar per pair.

    Args:
        tables: name of the pair -> table of `evidence.matching.across_ks`.
    """
    figure = Figure(figsize=(9, 1.7 + 0.45 * len(tables)))
    axes = figure.subplots()
    names = [f"{name}\n{len(table):,} latents" for name, table in tables.items()]
    counts = pd.DataFrame([table["outcome"].value_counts(normalize=True) for table in tables.values()])
    shares = counts.reindex(columns=list(_OUTCOMES), fill_value=0).fillna(0).to_numpy()
    left = np.zeros(len(tables))
    for (meaning, colour, text), share in zip(_OUTCOMES.values(), shares.T, strict=True):
        look: dict[str, Any] = {"color": colour, "edgecolor": QUIET, "linewidth": 0.5, "label": meaning}
        bars = axes.barh(names, share, left=left, height=0.7, **look)
        numbers = [f"{s:.0%}" if s >= 0.035 else "" for s in share]
        axes.bar_label(bars, numbers, label_type="center", color=text, fontsize=8)
        left += share
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(xlim=(0, 1), xlabel="share of the latents of the smaller k (matched by the correlation of activations)")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside lower left", ncols=2, fontsize=8)
    headline(figure, title)
    return figure


@styled
def across_layers(matches: pd.DataFrame, control: pd.DataFrame, layers: Sequence[int], title: str) -> Figure:
    """The latents that are new, continue or end at each layer, and the number of layers in which they continue.

    Args:
        matches: from `evidence.matching.across_layers`.
        control: the same with one of each two layers' codes through `shuffled_rows`.
        layers: the layers' numbers, by position.
    """
    figure = Figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    _steps(left, layer_summary(matches), layer_summary(control), layers)
    _lengths(right, matches, control, len(layers))
    handles, words = left.get_legend_handles_labels()
    handles, words = handles[1:] + handles[:1], words[1:] + words[:1]  # the control is a line, which comes first
    figure.legend(handles, words, loc="outside lower left", ncols=4, fontsize=8)
    headline(figure, title)
    return figure


def _steps(axes: Axes, summary: pd.DataFrame, control: pd.DataFrame, layers: Sequence[int]) -> None:
    place = summary["position"].to_numpy()
    for number, (column, (meaning, colour, text)) in enumerate(_STEPS.items()):
        share, chance = ((table[column] / table["alive"]).astype(float) for table in (summary, control))
        x = place + 0.27 * (number - 1)
        axes.bar(x, share, 0.25, color=colour, label=meaning)
        for at, height in zip(x[share.notna()], share.dropna(), strict=True):
            inside = height > 0.1  # a tall bar's number stands in it, clear of the control's line
            look: dict[str, Any] = {"va": "center", "color": text} if inside else {"va": "bottom"}
            axes.text(at, height / 2 if inside else height + 0.015, f"{height:.0%}", ha="center", fontsize=8, **look)
        axes.hlines(chance, x - 0.125, x + 0.125, color=CONTROL, linewidth=2, label="" if number else _SHUFFLED)
    names = [f"layer {layer}\n{alive:,} fire" for layer, alive in zip(layers, summary["alive"], strict=True)]
    axes.set_xticks(place, names)
    axes.set(
        title="New, continued and ending latents",
        ylabel="share of the latents that fire",
        xlim=(-0.5, len(layers) - 0.5),
        ylim=(0, 1.03),
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", visible=False)


def _lengths(axes: Axes, matches: pd.DataFrame, control: pd.DataFrame, layers: int) -> None:
    lengths = np.arange(1, layers + 1)
    counts, chance = (
        table.loc[table["start"] == table["position"], "length"].value_counts().reindex(lengths, fill_value=0)
        for table in (matches, control)
    )
    bars = axes.bar(lengths, counts, color=ACCENT)
    axes.bar_label(bars, [f"{count:,}" for count in counts], fontsize=8, padding=2)
    axes.hlines(chance, lengths - 0.4, lengths + 0.4, color=CONTROL, linewidth=2)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 4 * max(counts.max(), chance.max(), 1))
    axes.yaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        title="Number of layers in which a latent continues",
        xlabel="consecutive layers with matching latents (1: no match)",
        ylabel="chains of matching latents",
    )
    axes.grid(axis="x", visible=False)
