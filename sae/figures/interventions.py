"""The figure of interventions: the change of the ViT's output, and the effect on the latents' classes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sae.figures.style import ACCENT, INK, QUIET, headline, plain_numbers, say, shorten, styled
from sae.images import describe


@styled
def interventions(latents: pd.DataFrame, effects: pd.DataFrame, title: str, most: int = 8) -> Figure:
    """Draws the size against the control, the agreement with the correlated class, and the latents of the largest size.

    Args:
        latents, effects: interventions.parquet and effects.parquet.
        most: number of latents in the right panel; those with the largest size are shown.
    """
    figure = Figure(figsize=(13, 4.2))
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.2])
    headline(figure, title)
    if latents.empty:
        for ax in (left, middle, right):
            say(ax, "no latent was removed")
        return figure
    _sizes(left, latents)
    _agreement(middle, latents)
    _strongest(right, latents, effects, most)
    return figure


def _sizes(ax: Axes, latents: pd.DataFrame) -> None:
    shown = latents[(latents["size"] > 0) & (latents["size_control"] > 0)]
    if shown.empty:
        say(ax, "no latent changes the output")
        return
    low, high = shown[["size", "size_control"]].min().min() / 2, shown[["size", "size_control"]].max().max() * 2
    ax.plot([low, high], [low, high], color=INK, linestyle=":", linewidth=1)
    ax.scatter(shown["size_control"], shown["size"], s=18, facecolors="none", edgecolors=ACCENT)
    unit = "KL, nats" if shown["measure"].iloc[0] == "kl" else shown["measure"].iloc[0]
    ax.set(
        title=f"{(shown['size'] > shown['size_control']).mean():.0%} of {len(shown)} latents exceed their control",
        xlabel=f"a random latent of the same norm removed ({unit})",
        ylabel=f"change of the output: latent removed ({unit})",
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(low, high),
    )
    plain_numbers(ax.xaxis)
    plain_numbers(ax.yaxis)
    if len(shown) < len(latents):
        words = f"{len(latents) - len(shown)} not shown: no change"
        ax.text(0.98, 0.02, words, transform=ax.transAxes, ha="right", color=INK, fontsize=8)


def _agreement(ax: Axes, latents: pd.DataFrame) -> None:
    known = latents.dropna(subset="agreement")
    if known.empty:
        say(ax, "no latent has a class\nthat the ViT predicts and that changes")
        return
    bins, (median, median_control) = np.linspace(0, 1, 11).tolist(), known[["agreement", "agreement_control"]].median()
    ax.hist(known["agreement"], bins=bins, color=ACCENT, label=f"latent removed: median {median:.2f}")
    label = f"control: median {median_control:.2f}"
    ax.hist(known["agreement_control"].dropna(), bins=bins, histtype="step", color=INK, label=label)
    ax.axvline(0.5, ymax=0.77, color=INK, linestyle=":", linewidth=1)
    ax.plot(median, 0.79, "v", color=ACCENT, transform=ax.get_xaxis_transform())
    ax.plot(median_control, 0.79, "v", ms=10, mfc="none", color=INK, transform=ax.get_xaxis_transform())
    ax.set(
        title=f"Rank of the latent's class, n = {len(known)}",
        xlabel="rank by loss (1: loses most; 0.5: chance)",
        ylabel="latents",
        xlim=(0, 1),
        ylim=(0, 1.3 * ax.get_ylim()[1]),
    )
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=8, loc="upper left")


def _strongest(ax: Axes, latents: pd.DataFrame, effects: pd.DataFrame, most: int) -> None:
    shown = latents.dropna(subset="causal_class").nlargest(most, "size")
    if shown.empty:
        say(ax, "no class is known to change")
        return
    keys = ["latent", "attribute", "class"]
    chosen = shown.rename(columns={"causal_attribute": "attribute", "causal_class": "class"})
    ablated = effects.loc[effects["kind"] == "ablate", [*keys, "se"]]
    chosen = chosen.merge(ablated, on=keys, how="left")[::-1]
    places = np.arange(len(chosen))
    label = "latent removed (bar: standard error)"
    ax.errorbar(chosen["causal_effect"], places, xerr=chosen["se"], fmt="o", ms=4, color=ACCENT, label=label)
    ax.plot(chosen["control_effect"], places, "|", color=QUIET, ms=10, mew=2, label="control: its largest effect")
    names = []
    for row in chosen.to_dict("records"):
        moves, correlates = (row["attribute"], row["class"]), (row["correlated_attribute"], row["correlated_class"])
        name = f"latent {row['latent']}: {_name(*moves)}"
        if isinstance(row["correlated_class"], str):
            name += "\n(also its class)" if moves == correlates else f"\n(its class: {_name(*correlates)})"
        names.append(name)
    ax.set_yticks(places, names, fontsize=7.5)
    ax.set_ylim(-2, len(chosen) - 0.5)  # room for the legend
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("loss of log-probability, against the mean class (nats)")
    ax.set_title(f"The class that loses most, for the {len(chosen)} strongest latents", x=-0.35)
    ax.legend(fontsize=8, loc="lower right")


def _name(attribute: str, value: str) -> str:
    return shorten(describe(value)) if attribute in ("label", "output") else f"{attribute} {value}"
