"""Figures of sparse probes and of monosemanticity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sae.figures.style import ACCENT, BASELINE_MARKS, INK, QUIET, headline, say, styled


@styled
def probes(tables: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """The AUROC of probes on few latents: a faint dot per class, a large mark for the mean.

    Args:
        tables: name of the dictionary -> `Probes.table`, the dictionary in question first, then those that it is
            compared with. `dense`, the same for all, is drawn from the first, where that has it.
    """
    figure = Figure(figsize=(9, 4.6))
    axes = figure.subplots()
    headline(figure, title)
    first = next(iter(tables.values()))
    if first.empty:
        say(axes, "No class has enough images in both splits to be probed.")
        return figure
    sizes = [name for name in first["probe"].unique() if name not in ("dense", "shuffled")]
    columns = {size: f"{size} latent{'s' if size != '1' else ''}" for size in sizes}
    if first["probe"].eq("dense").any():
        columns["dense"] = "all dimensions\nof the activations"
    columns["shuffled"] = f"{columns[sizes[-1]]},\nlabels shuffled"
    rng = np.random.default_rng(0)
    step = 0.8 / len(tables)
    axes.axhline(0.5, color=INK, linestyle=":", linewidth=1)
    for number, (name, table) in enumerate(tables.items()):
        mean = table.groupby("probe")["auroc"].mean()
        mark = BASELINE_MARKS.get(name, "o")
        for place, probe in enumerate(columns):
            dense = probe == "dense"
            if dense and number:
                continue
            x = place if dense else place + (number - (len(tables) - 1) / 2) * step
            dots = table.loc[table["probe"] == probe, "auroc"].to_numpy()
            spread = rng.uniform(-0.2, 0.2, len(dots)) * step
            colour = INK if dense else QUIET if number else ACCENT
            axes.scatter(x + spread, dots, s=9, color=colour, alpha=0.25, linewidths=0)
            colour = INK if number or dense else ACCENT
            axes.plot(x, mean[probe], "*" if dense else mark, ms=11 if dense else 8, color=colour)
            if not number:  # the others are read off their marks: numbers would cover each other
                axes.annotate(f"{mean[probe]:.2f}", (x, mean[probe]), (0, 9), textcoords="offset points", ha="center",
                              color=colour, fontweight="bold", fontsize=8)  # fmt: skip
        axes.plot([], [], mark, color=INK if number else ACCENT, label=name)
    axes.set_xticks(range(len(columns)), columns.values())
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(min(0.4, *(table["auroc"].min() for table in tables.values())) - 0.03, 1.02)
    axes.grid(axis="x", visible=False)
    axes.text(0.005, 0.5, "chance", transform=axes.get_yaxis_transform(), va="bottom", color=INK, fontsize=8)
    classes, attributes = len(first) // len(columns), first["attribute"].nunique()
    per_class = f"{classes} classes" + (f" of {attributes} attributes" if attributes > 1 else "")
    mean = first.groupby("probe")["auroc"].mean()
    axes.set(
        title=f"Mean AUROC from one latent: {mean[sizes[0]]:.2f}"
        + (f"; from all dimensions: {mean['dense']:.2f}" if "dense" in columns else ""),
        ylabel="AUROC on held-out images",
        xlabel=f"input of the probe (large mark: mean over {per_class}; small dot: one class)",
    )
    if len(tables) > 1:
        figure.legend(loc="outside lower center", ncols=len(tables))
    return figure


@styled
def monosemanticity(scores: np.ndarray, shuffled: np.ndarray, title: str) -> Figure:
    """Monosemanticity scores of a dictionary's latents [F] over those with the images in random order [F]."""
    figure = Figure(figsize=(8, 3.8))
    axes = figure.subplots()
    known = ~np.isnan(scores)
    headline(figure, title)
    if not known.any():
        say(axes, "No latent fires on two images: there is nothing to compare.")
        return figure
    real, control = scores[known], shuffled[known]
    low, high = np.quantile(np.concatenate([real, control]), [0.002, 0.998])
    edges = np.linspace(low, high, 61).tolist()
    axes.hist(control.clip(low, high), edges, color=QUIET, alpha=0.6)
    axes.hist(real.clip(low, high), edges, histtype="step", color=ACCENT, linewidth=1.6)
    above = float((real > np.quantile(control, 0.95)).mean())
    for values, colour, words, y in ((real, ACCENT, "these latents", 0.97), (control, INK, "images shuffled", 0.87)):
        axes.axvline(np.median(values), color=colour, linestyle=":", linewidth=1)
        axes.text(0.99, y, f"{words}: median {np.median(values):.3f}", color=colour, transform=axes.transAxes,
                  ha="right", va="top", fontweight="bold")  # fmt: skip
    axes.set(
        title=f"{above:.0%} of the latents score above 95 % of those with shuffled images",
        xlabel="monosemanticity: similarity of the images on which a latent fires (0: as any two images, 1: identical)",
        ylabel="latents",
    )
    if not known.all():
        words = f"Not shown: {(~known).sum():,} of {len(known):,} latents, which fire on fewer than two images."
        figure.supxlabel(words, fontsize=8, color=INK, x=0.01, ha="left")
    return figure
