"""Figures of what `probing` and `monosemanticity` find; `sae.figures.save` writes what they return."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sae.figures.latents import ACCENT, BASELINE_MARKS, INK, QUIET


def probing_figure(tables: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """How well few latents tell the classes of held-out images: a faint dot per class, a mark for the mean over them.

    Args:
        tables: name of the dictionary -> `Probes.table`, the one in question first and what it is compared with behind
            it. `dense`, the same for all, is drawn from the first, where that has it.
    """
    figure, axes = plt.subplots(figsize=(9, 4.4))
    first = next(iter(tables.values()))
    if first.empty:
        axes.set_axis_off()
        axes.text(0, 0.5, "No class has enough images in both splits to be probed.", color=INK)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        return figure
    sizes = [name for name in first["probe"].unique() if name not in ("dense", "shuffled")]
    columns = {size: f"{size} latent{'s' if size != '1' else ''}" for size in sizes}
    if first["probe"].eq("dense").any():
        columns["dense"] = "all raw\ndimensions"
    columns["shuffled"] = f"{columns[sizes[-1]]},\nlabels shuffled"
    rng = np.random.default_rng(0)
    step = 0.8 / len(tables)
    axes.axhline(0.5, color=INK, linestyle=":", linewidth=1)
    for number, (name, table) in enumerate(tables.items()):
        colour = QUIET if number else ACCENT
        mean = table.groupby("probe")["auroc"].mean()
        for place, probe in enumerate(columns):
            if probe == "dense" and number:
                continue
            paint = INK if probe == "dense" else colour
            x = place + (0 if probe == "dense" else (number - (len(tables) - 1) / 2) * step)
            dots = table.loc[table["probe"] == probe, "auroc"].to_numpy()
            spread = rng.uniform(-0.2, 0.2, len(dots)) * step
            axes.scatter(x + spread, dots, s=9, color=paint, alpha=0.25, linewidths=0)
            axes.plot(
                x,
                mean[probe],
                BASELINE_MARKS.get(name, "o"),
                ms=8,
                color=paint if not number or probe == "dense" else INK,
            )
            if not number:  # the others are read off their marks: numbers would cover each other
                axes.annotate(f"{mean[probe]:.2f}", (x, mean[probe]), (0, 9), textcoords="offset points", ha="center",
                              color=paint, fontweight="bold", fontsize=8)  # fmt: skip
        axes.plot([], [], BASELINE_MARKS.get(name, "o"), color=INK if number else ACCENT, label=name)
    axes.set_xticks(range(len(columns)), columns.values())
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(min(0.4, *(table["auroc"].min() for table in tables.values())) - 0.03, 1.02)
    axes.grid(axis="x", visible=False)
    axes.text(0.005, 0.5, "chance", transform=axes.get_yaxis_transform(), va="bottom", color=INK, fontsize=8)
    classes, attributes = len(first) // len(columns), first["attribute"].nunique()
    per_class = f"{classes} classes" + (f" of {attributes} attributes" if attributes > 1 else "")
    mean = first.groupby("probe")["auroc"].mean()
    axes.set(
        title=f"One latent tells a class with AUROC {mean[sizes[0]]:.2f}"
        + (f", all raw dimensions with {mean['dense']:.2f}" if "dense" in columns else ""),
        ylabel="AUROC on held-out images",
        xlabel=f"what a probe reads; large marks: mean over {per_class}, a small dot each",
    )
    if len(tables) > 1:
        axes.legend(loc="upper right")  # above the shuffled labels, where no mark is
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def monosemanticity_figure(scores: np.ndarray, shuffled: np.ndarray, title: str) -> Figure:
    """Monosemanticity scores of an SAE's latents [F] over those with the images in random order [F]."""
    figure, axes = plt.subplots(figsize=(8, 3.8))
    known = ~np.isnan(scores)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    if not known.any():
        axes.set_axis_off()
        axes.text(0, 0.5, "No latent fires on two images: there is nothing to compare.", color=INK)
        return figure
    found, control = scores[known], shuffled[known]
    low, high = np.quantile(np.concatenate([found, control]), [0.002, 0.998])
    edges = np.linspace(low, high, 61)
    axes.hist(control.clip(low, high), edges, color=QUIET, alpha=0.6)
    axes.hist(found.clip(low, high), edges, histtype="step", color=ACCENT, linewidth=1.6)
    above = float((found > np.quantile(control, 0.95)).mean())
    for values, colour, words, y in ((found, ACCENT, "this SAE", 0.97), (control, INK, "images shuffled", 0.84)):
        axes.axvline(np.median(values), color=colour, linestyle=":", linewidth=1)
        axes.text(0.99, y, f"{words}: median {np.median(values):.3f}", color=colour, transform=axes.transAxes,
                  ha="right", va="top", fontweight="bold")  # fmt: skip
    axes.set(
        title=f"{above:.0%} of the latents fire on images more alike than 95% do with the images shuffled",
        xlabel="monosemanticity: how alike the images are on which a latent fires (0: as any two, 1: the same)",
        ylabel="latents",
    )
    if not known.all():
        figure.supxlabel(
            f"Not shown: {(~known).sum():,} of {len(known):,} latents, which fire on fewer than two images.",
            fontsize=8, color=INK, x=0.01, ha="left",
        )  # fmt: skip
    return figure
