"""Figures of what `matching` finds: each takes its tables and returns a figure, which `sae.figures.save` writes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sae.evidence.matching import FATES, layer_summary
from sae.figures.latents import ACCENT, INK, QUIET, plt

_CONTROL = "#2563eb"
_MEANING = {  # the fates, in words for the legend, and their colours
    "same": ("same: each other's best match", INK),
    "split": ("split: shared out among several", ACCENT),
    "changed": ("changed: each other's best match, but a weak one", "#f0b490"),
    "merged": ("merged: its match stands for another latent first", "#6b7280"),
    "lost": ("lost: nothing like it", "#cfd3d8"),
    "dead": ("dead: never fires", "#ffffff"),
}


def stability_figure(table: pd.DataFrame, nulls: dict[str, np.ndarray], title: str) -> Figure:
    """How well latents are found again by other seeds, beside dictionaries that learnt nothing.

    Args:
        table: latents with their stability_cosine; those without a stability_correlation, which never fire, are left
            out.
        nulls: from `null_stability`.
    """
    shown = table.loc[table["stability_correlation"].notna(), "stability_cosine"].to_numpy()
    series = {"latents of the SAE": shown} | {f"null, {name}": values for name, values in nulls.items()}
    looks = [(ACCENT, "-"), (INK, "--"), (QUIET, "-"), (QUIET, ":")]
    edges = np.linspace(min(0, *(values.min(initial=0) for values in series.values())), 1, 61)
    figure, axes = plt.subplots(figsize=(7.5, 3.8))
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
        title=title,
        xlabel="cosine with the matching latent of another seed, mean over the other seeds (1: found again exactly)",
        ylabel="share of the latents",
        xlim=(edges[0], 1),
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    heading = f"{len(shown):,} of {len(table):,} latents fire"
    axes.legend(loc="upper right", title=heading, alignment="left")
    return figure


def fates_figure(tables: dict[str, pd.DataFrame], title: str) -> Figure:
    """What becomes of one SAE's latents in another, a bar per pair; tables: from `fates`, by the pair's name."""
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.45 * len(tables)))
    names = [f"{name}\n{len(table):,} latents" for name, table in tables.items()]
    shares = pd.DataFrame([table["fate"].value_counts(normalize=True) for table in tables.values()])
    shares = shares.reindex(columns=FATES, fill_value=0).fillna(0).to_numpy()
    left = np.zeros(len(tables))
    for (words, colour), share in zip(_MEANING.values(), shares.T, strict=True):
        bars = axes.barh(names, share, left=left, height=0.7, color=colour, edgecolor=QUIET, linewidth=0.5, label=words)
        dark = colour in (INK, ACCENT, _MEANING["merged"][1])
        axes.bar_label(
            bars,
            [f"{s:.0%}" if s >= 0.035 else "" for s in share],
            label_type="center",
            color="white" if dark else INK,
            fontsize=8,
        )
        left += share
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(
        title=title,
        xlim=(0, 1),
        xlabel="share of the first SAE's latents; a match is the highest correlation of activations",
    )
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside lower left", ncols=2, fontsize=8)
    return figure


def layers_figure(chains: pd.DataFrame, control: pd.DataFrame, layers: Sequence[int], title: str) -> Figure:
    """Where latents come from and go to between layers, and how many layers they last.

    Args:
        chains: from `chains`.
        control: the same with one of each two layers' codes through `shuffled_rows`.
        layers: the layers' numbers, by position.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=[1.5, 1])
    summary, chance = layer_summary(chains), layer_summary(control)
    place = summary["position"].to_numpy()
    kinds = {
        "appear": ("new: no match in the layer before", ACCENT),
        "persist": ("goes on: a match in the next layer", INK),
        "end": ("ends: no match in the next layer", QUIET),
    }
    for number, (column, (words, colour)) in enumerate(kinds.items()):
        share, by_chance = ((table[column] / table["alive"]).astype(float) for table in (summary, chance))
        at = place + 0.27 * (number - 1)
        left.bar(at, share, 0.25, color=colour, label=words)
        for x, y in zip(at[share.notna()], share.dropna(), strict=True):
            inside = y > 0.1  # a tall bar's number stands in it, clear of the control's line
            text = {"va": "center", "color": INK if colour == QUIET else "white"} if inside else {"va": "bottom"}
            left.text(x, y / 2 if inside else y + 0.015, f"{y:.0%}", ha="center", fontsize=8, **text)
        left.hlines(by_chance, at - 0.125, at + 0.125, color=_CONTROL, linewidth=2)
    left.hlines([], 0, 0, color=_CONTROL, linewidth=2, label="the same, with the images shuffled")
    names = [f"layer {layer}\n{alive:,} fire" for layer, alive in zip(layers, summary["alive"], strict=True)]
    left.set_xticks(place, names)
    left.set(
        title="Which latents are new, go on or end",
        ylabel="share of the latents that fire",
        xlim=(-0.5, len(layers) - 0.5),
        ylim=(0, 1.03),
    )
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.grid(axis="x", visible=False)
    handles, words = left.get_legend_handles_labels()
    handles, words = handles[1:] + handles[:1], words[1:] + words[:1]  # the control, a line, comes first of itself
    figure.legend(handles, words, loc="outside lower left", ncols=4, fontsize=8)

    lengths = np.arange(1, len(layers) + 1)
    counts, by_chance = (
        table.loc[table["start"] == table["position"], "length"].value_counts().reindex(lengths, fill_value=0)
        for table in (chains, control)
    )
    bars = right.bar(lengths, counts, color=ACCENT)
    right.bar_label(bars, [f"{count:,}" for count in counts], fontsize=8, padding=2)
    right.hlines(by_chance, lengths - 0.4, lengths + 0.4, color=_CONTROL, linewidth=2)
    right.set_yscale("symlog", linthresh=1)
    right.set_ylim(0, 4 * max(counts.max(), by_chance.max(), 1))
    right.yaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(
        title="How long latents last",
        xlabel="layers in a row in which one is found (1: its own only)",
        ylabel="chains of matching latents",
    )
    right.grid(axis="x", visible=False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure
