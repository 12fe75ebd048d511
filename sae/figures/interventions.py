"""The figure of `causality`: how far latents move the output, and whether the class they correlate with moves."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sae.figures.latents import ACCENT, INK, QUIET, _short
from sae.images import describe


def causality_figure(latents: pd.DataFrame, effects: pd.DataFrame, title: str, most: int = 8) -> Figure:
    """Draws size against control, the agreement with the correlated class, and the latents that move most.

    Args:
        latents, effects: the tables of `causality.measure`.
        most: latents in the right panel, those with the largest effect size.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=[1, 1, 1.2])
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    if latents.empty:
        for ax in (left, middle, right):
            _nothing(ax, "no latent was looked at")
        return figure
    _sizes(left, latents)
    _agreement(middle, latents)
    _strongest(right, latents, effects, most)
    return figure


def _nothing(ax: plt.Axes, words: str) -> None:
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color=INK)
    ax.set_axis_off()


def _sizes(ax: plt.Axes, latents: pd.DataFrame) -> None:
    shown = latents[(latents["size"] > 0) & (latents["size_control"] > 0)]
    if shown.empty:
        _nothing(ax, "no latent moves the output")
        return
    low, high = shown[["size", "size_control"]].min().min() / 2, shown[["size", "size_control"]].max().max() * 2
    ax.plot([low, high], [low, high], color=INK, linestyle=":", linewidth=1)
    ax.scatter(shown["size_control"], shown["size"], s=18, facecolors="none", edgecolors=ACCENT)
    unit = "KL, nats" if shown["measure"].iloc[0] == "kl" else shown["measure"].iloc[0]
    ax.set(
        title=f"{(shown['size'] > shown['size_control']).mean():.0%} of {len(shown)} latents exceed the control",
        xlabel=f"a random latent's direction, same norm ({unit})",
        ylabel=f"the latent ablated ({unit})",
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(low, high),
    )
    if len(shown) < len(latents):
        words = f"{len(latents) - len(shown)} not shown: nothing moves"
        ax.text(0.98, 0.02, words, transform=ax.transAxes, ha="right", color=INK, fontsize=8)


def _agreement(ax: plt.Axes, latents: pd.DataFrame) -> None:
    known = latents.dropna(subset="agreement")
    if known.empty:
        _nothing(ax, "no latent correlates with a class\nthat the head knows and that moves")
        return
    bins, (own, control) = np.linspace(0, 1, 11), known[["agreement", "agreement_control"]].median()
    ax.hist(known["agreement"], bins=bins, color=ACCENT, label=f"the latent ablated: median {own:.2f}")
    label = f"control: median {control:.2f}"
    ax.hist(known["agreement_control"].dropna(), bins=bins, histtype="step", color=INK, label=label)
    ax.axvline(0.5, ymax=0.77, color=INK, linestyle=":", linewidth=1)
    ax.plot(own, 0.79, "v", color=ACCENT, transform=ax.get_xaxis_transform())
    ax.plot(control, 0.79, "v", ms=10, mfc="none", color=INK, transform=ax.get_xaxis_transform())
    ax.set(
        title=f"Does the correlated class move? n = {len(known)}",
        xlabel="place of the correlated class (1: it falls most; chance 0.5)",
        ylabel="latents",
        xlim=(0, 1),
        ylim=(0, 1.3 * ax.get_ylim()[1]),
    )
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=8, loc="upper left")


def _strongest(ax: plt.Axes, latents: pd.DataFrame, effects: pd.DataFrame, most: int) -> None:
    shown = latents.dropna(subset="causal_class").nlargest(most, "size")
    if shown.empty:
        _nothing(ax, "no class is known to move")
        return
    keys = ["latent", "attribute", "class"]
    chosen = shown.rename(columns={"causal_attribute": "attribute", "causal_class": "class"})
    ablated = effects.loc[effects["kind"] == "ablate", [*keys, "se"]]
    chosen = chosen.merge(ablated, on=keys, how="left")[::-1]
    places = np.arange(len(chosen))
    bars = {"fmt": "o", "ms": 4, "color": ACCENT, "label": "ablated, ± s.e."}
    ax.errorbar(chosen["causal_effect"], places, xerr=chosen["se"], **bars)
    ax.plot(chosen["control_effect"], places, "|", color=QUIET, ms=10, mew=2, label="the control's largest")
    names = []
    for row in chosen.to_dict("records"):
        moves, correlates = (row["attribute"], row["class"]), (row["correlated_attribute"], row["correlated_class"])
        words = f"{row['latent']}: {_name(*moves)}"
        if isinstance(row["correlated_class"], str):
            words += "\n(correlates too)" if moves == correlates else f"\n(correlates: {_name(*correlates)})"
        names.append(words)
    ax.set_yticks(places, names, fontsize=7.5)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.grid(axis="y", visible=False)
    ax.set(
        title=f"The {len(chosen)} latents with the largest effect",
        xlabel="effect on the class that falls most (nats, against its group)",
    )
    ax.legend(fontsize=8, loc="best")


def _name(attribute: str, value: str) -> str:
    return _short(describe(value)) if attribute in ("label", "output") else f"{attribute} {value}"
