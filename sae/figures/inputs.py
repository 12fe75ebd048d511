"""Figures of the inputs: the images and the ViT, a layer's activations, the training of an SAE."""

from __future__ import annotations

from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sae.figures.style import ACCENT, CONTROL, INK, QUIET, headline, plain_numbers, say, styled
from sae.geometry import Geometry
from sae.images import HELD_OUT, TRAIN, used

_TOKEN_COLOURS = {"patch": ACCENT, "class": INK, "register": CONTROL, "distillation": "#16a34a"}


@styled
def overview(manifest: pd.DataFrame, model: dict[str, Any], name: str, pixels: np.ndarray) -> Figure:
    """Some images as the ViT sees them, the numbers of used and unused images, and the ViT's accuracy.

    Args:
        model: model.json.
        name: the ViT's name.
        pixels: uint8 [n, height, width, 3], to choose the shown images from.
    """
    figure = Figure(figsize=(12, 4.6))
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
    left.imshow(_mosaic(pixels[np.linspace(0, len(pixels) - 1, min(16, len(pixels))).astype(int)]))
    left.set_title("Some images as the ViT sees them")
    left.set_axis_off()

    splits = manifest["split"].map({TRAIN: "train", HELD_OUT: "held out"})
    counts = manifest["status"].where(manifest["status"] != "ok", splits).value_counts().sort_values()
    bars = middle.barh(
        counts.index, counts, color=[ACCENT if s in ("train", "held out") else QUIET for s in counts.index]
    )
    middle.bar_label(bars, [f"{count:,}" for count in counts], padding=3)
    middle.margins(x=0.15)
    middle.grid(axis="y", visible=False)
    classes = used(manifest)["label"].nunique()
    middle.set(title=f"{len(manifest):,} image files, {classes or 'no'} classes", xlabel="images")

    accuracy = pd.Series(model["accuracy"], dtype=float)[::-1]
    if len(accuracy):
        bars = right.barh(accuracy.index, accuracy, color=ACCENT)
        right.bar_label(bars, [f"{v:.1%}" for v in accuracy], padding=3)
        right.set_xlim(0, 1.18)
        right.grid(axis="y", visible=False)
        right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right.set(title="Accuracy of the untouched ViT", xlabel=f"accuracy on {len(model['ids']):,} held-out images")
    else:
        say(right, "The accuracy is unknown:\nthe images have no labels that the ViT can predict.")
    geometry = Geometry(**model["geometry"])
    rows, columns = geometry.patches
    prefix = f" + {len(geometry.prefix)} ({', '.join(dict.fromkeys(geometry.prefix))})" if geometry.prefix else ""
    headline(
        figure,
        f"{name}: {geometry.blocks} blocks of width {geometry.width}, {model['parameters'] / 1e6:.1f} M parameters; "
        f"{geometry.side[0]} × {geometry.side[1]} pixels, {rows} × {columns}{prefix} tokens",
    )
    return figure


def _mosaic(pictures: np.ndarray, columns: int = 4, gap: int = 4) -> np.ndarray:
    """Lays pictures [n, height, width, 3] side by side on white."""
    tiles = np.pad(pictures, ((0, -len(pictures) % columns), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows, (height, width) = len(tiles) // columns, tiles.shape[1:3]
    return (
        tiles.reshape(rows, columns, height, width, 3)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, 3)[:-gap, :-gap]
    )


@styled
def statistics(facts: dict[str, Any], layer: int) -> Figure:
    """One layer's activations: the norms of its tokens, its variance by dimension, and warnings.

    Args:
        facts: statistics.json.
    """
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    edges = 10 ** np.linspace(-1, 4, 51)
    seen = []
    for token_type, norm in facts["norms"].items():
        counts = np.array(norm["histogram"], float)
        seen += edges[:-1][counts > 0].tolist()
        left.stairs(
            counts / counts.sum(),
            edges,
            color=_TOKEN_COLOURS[token_type],
            fill=token_type == "patch",
            alpha=0.85,
            label=f"{token_type} tokens: median {norm['median']:.1f}",
        )
    left.set(xscale="log", title="Lengths of the token vectors", xlabel="norm ‖x‖", ylabel="share of these tokens")
    if seen:
        left.set(xlim=(min(seen) / 1.5, max(seen) * 2), ylim=(0, 1.25 * left.get_ylim()[1]))  # room for the legend
    plain_numbers(left.xaxis)
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.legend(loc="upper right")

    variance = np.sort(np.array(facts["variance"]))[::-1]
    right.plot(np.arange(1, len(variance) + 1), np.cumsum(variance) / variance.sum(), color=ACCENT, label="this layer")
    right.plot([0, len(variance)], [0, 1], color=QUIET, linestyle=":", label="if all dimensions had equal variance")
    top = facts["largest_dimensions"][0]
    right.set(
        title=f"Dimension {top['dimension']} alone has {top['share']:.1%} of the variance",
        xlabel=f"number of dimensions, those of largest variance first (of {len(variance)})",
        ylabel="their share of the variance",
        ylim=(0, 1.02),
    )
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.legend(loc="lower right")
    warnings = [fill(f"Warning: {warning}", 125) for warning in facts["warnings"]]
    words = "\n".join(warnings) or "No warnings: the activations look fine."
    size = f"{facts['rows']:,} train tokens ({facts['tokens']})"
    headline(figure, f"Layer {layer}: activations on {size}, ‖mean‖/‖std‖ = {facts['gamma']:.2f}")
    figure.supxlabel(words, fontsize=9, color=ACCENT if warnings else INK)
    return figure


@styled
def training(log: pd.DataFrame, title: str) -> Figure:
    """Training curves of one SAE.

    Args:
        log: training.csv.
    """
    figure = Figure(figsize=(13, 3.2))
    panels = [
        ("fvu", "FVU at the end: {:.3g}", "fraction of variance unexplained"),
        ("l0", "L0 at the end: {:.3g}", "active latents per token"),
        ("dead", "Dead at the end: {:.1%}", "share of all latents"),
        ("lr", "Learning rate", "learning rate"),
    ]
    axes = figure.subplots(1, 4)
    for ax, (column, words, unit) in zip(axes, panels, strict=True):
        ax.plot(log["tokens"], log[column], color=ACCENT)
        ax.set(title=words.format(log[column].iloc[-1]), xlabel="tokens seen", ylabel=unit)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter(lambda value, _place: f"{value / 1e6:g} M" if value else "0")
    axes[0].set_yscale("log")
    plain_numbers(axes[0].yaxis)
    axes[1].set_ylim(0, log["l0"].max() * 1.1)
    axes[2].set_ylim(0, max(0.05, log["dead"].max() * 1.1))
    axes[2].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    headline(figure, f"{title}: {log['tokens'].iloc[-1]:,} tokens")
    return figure
