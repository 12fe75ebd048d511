"""The report's figures. Each function takes tables and returns a matplotlib figure; `save` writes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sae.files import whole
from sae.images import HELD_OUT, TRAIN, describe, used

INK, ACCENT, QUIET = "#222222", "#c2410c", "#9aa0a6"
# One colour for a layer and one for a k in every figure; the explorer has the same scales.
SCALES = {"layer": ("viridis", 0.82), "k": ("plasma", 0.8)}
BASELINE_MARKS = {"neurons": "s", "pca": "^", "kmeans": "D", "random": "x", "sampled": "+", "frozen": "v"}
matplotlib.rcParams.update(
    {
        "figure.constrained_layout.use": True,
        "figure.facecolor": "white",
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "axes.axisbelow": True,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "sae",  # the same table gives the same file
    }
)


def colours(kind: str, values: Iterable[int]) -> dict[int, tuple[float, ...]]:
    """Returns a colour for each of the grid's layers (`kind` layer) or ks, dark to light in their order."""
    name, end = SCALES[kind]
    ordered = sorted({*values})
    return dict(zip(ordered, matplotlib.colormaps[name](np.linspace(0, end, len(ordered))), strict=True))


def save(figure: Figure, path: str | Path) -> None:
    """Writes the figure as SVG or PNG, by the ending; the same figure gives the same bytes."""
    with whole(path) as part:
        figure.savefig(part, dpi=110, metadata={"Date": None} if Path(path).suffix == ".svg" else None)
    plt.close(figure)


def overview(manifest: pd.DataFrame, model: dict[str, Any], name: str, pixels: np.ndarray, ids: np.ndarray) -> Figure:
    """What went in: some images as the model sees them, how many were used and why not, what the model knows.

    Args:
        model: model.json.
        name: the model's name.
        pixels: uint8 [n, height, width, 3] and their ids [n], to choose the shown images from.
    """
    figure = plt.figure(figsize=(12, 4.6))
    left, middle, right = figure.add_gridspec(1, 3, width_ratios=[1.25, 1, 1])
    shown = np.linspace(0, len(ids) - 1, min(16, len(ids))).astype(int)
    axes = figure.add_subplot(left)
    axes.imshow(_mosaic([pixels[index] for index in shown]))
    axes.set_title("Images as the model sees them")
    axes.set_axis_off()

    axes = figure.add_subplot(middle)
    status = manifest["status"].where(
        manifest["status"] != "ok", manifest["split"].map({TRAIN: "train", HELD_OUT: "held out"})
    )
    counts = status.value_counts().sort_values()
    bars = axes.barh(
        counts.index, counts, color=[ACCENT if s in ("train", "held out") else QUIET for s in counts.index]
    )
    axes.bar_label(bars, padding=3)
    axes.margins(x=0.15)
    axes.grid(axis="y", visible=False)
    labels = used(manifest)["label"].nunique()
    axes.set(title=f"{len(manifest)} image files, {labels or 'no'} classes", xlabel="images")

    axes = figure.add_subplot(right)
    geometry = model["geometry"]
    rows, columns = geometry["grid"]
    facts = (
        f"{name}: {geometry['blocks']} blocks, width {geometry['width']}, "
        f"{model['parameters'] / 1e6:.1f} M parameters\n"
        f"{geometry['side'][0]} x {geometry['side'][1]} pixels, {rows} x {columns} patches, "
        f"{len(geometry['prefix'])} prefix token(s)"
    )
    accuracy = pd.Series(model["accuracy"], dtype=float)[::-1]
    if len(accuracy):
        bars = axes.barh(accuracy.index, accuracy, color=ACCENT)
        axes.bar_label(bars, [f"{v:.1%}" for v in accuracy], padding=3)
        axes.set_xlim(0, 1.18)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set(title="What the untouched model reads off", xlabel=f"accuracy on {len(model['ids'])} held-out images")
    else:
        axes.set_axis_off()
        axes.text(0, 0.5, "The images carry no labels\nthat this model's head knows.", color=INK)
    figure.suptitle(facts, fontsize=9, x=0.995, ha="right", color=INK)
    return figure


def _mosaic(pictures: list[np.ndarray], columns: int = 4, gap: int = 4) -> np.ndarray:
    """Lays pictures [height, width, 3] side by side on white."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        canvas[top : top + height, left : left + width] = picture
    return canvas


def statistics(facts: dict[str, Any], layer: int) -> Figure:
    """One layer's activations: norms by token role, variance by dimension, and what is unhealthy, in words."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    edges = 10 ** np.linspace(-1, 4, 51)
    colours = {"patch": ACCENT, "class": INK, "register": "#2563eb", "distillation": "#16a34a"}
    seen = []
    for role, norm in facts["norms"].items():
        counts = np.array(norm["histogram"], float)
        seen += edges[:-1][counts > 0].tolist()
        left.stairs(
            counts / counts.sum(),
            edges,
            color=colours[role],
            fill=role == "patch",
            alpha=0.85,
            label=f"{role} (median {norm['median']:.1f})",
        )
    left.set(xscale="log", title="How long the tokens are", xlabel="norm ‖x‖", ylabel="share of the tokens of a role")
    if seen:
        left.set_xlim(min(seen) / 1.5, max(seen) * 2)
    plain_numbers(left.xaxis)
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.legend()

    variance = np.sort(np.array(facts["variance"]))[::-1]
    right.plot(np.arange(1, len(variance) + 1), np.cumsum(variance) / variance.sum(), color=ACCENT)
    right.plot([0, len(variance)], [0, 1], color=QUIET, linestyle=":", label="all dimensions alike")
    top = facts["largest_dimensions"][0]
    right.set(
        title=f"Dimension {top['dimension']} alone carries {top['share']:.1%} of the variance",
        xlabel=f"dimensions, largest first (of {len(variance)})",
        ylabel="share of the variance",
        ylim=(0, 1.02),
    )
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.legend(loc="lower right")
    verdict = "\n".join(fill(f"Warning: {w}", 125) for w in facts["warnings"]) or "Nothing unhealthy found."
    figure.suptitle(
        f"Layer {layer}, {facts['rows']:,} train tokens ({facts['tokens']}): γ = ‖mean‖/‖std‖ = {facts['gamma']:.2f}",
        fontweight="bold",
    )
    figure.supxlabel(verdict, fontsize=9, color=ACCENT if facts["warnings"] else INK)
    return figure


def plain_numbers(axis: Axis) -> None:
    """Writes the ticks of a short logarithmic axis as 0.04 and 60 rather than as powers of ten."""
    axis.set_major_formatter(lambda value, _place: f"{value:g}")
    axis.set_minor_formatter(lambda value, _place: f"{value:g}" if f"{value:e}"[0] in "246" else "")


def training(log: pd.DataFrame, speed: float, title: str) -> Figure:
    """Training curves of one SAE against the tokens seen; log is training.csv, speed in tokens per second."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2))
    panels = [
        ("fvu", "FVU of the batch", "fraction of variance unexplained"),
        ("l0", "L0", "latents active per token"),
        ("dead", "Dead latents", "share of all latents"),
        ("lr", "Learning rate", "learning rate"),
    ]
    for ax, (column, name, unit) in zip(axes, panels, strict=True):
        ax.plot(log["tokens"], log[column], color=ACCENT)
        last = "" if column == "lr" else f": {log[column].iloc[-1]:.3g} at the end"
        ax.set(title=name + last, xlabel="tokens seen", ylabel=unit)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter(lambda value, _place: f"{value / 1e6:g} M" if value else "0")
    axes[0].set_yscale("log")
    plain_numbers(axes[0].yaxis)
    axes[1].set_ylim(0, log["l0"].max() * 1.1)
    axes[2].set_ylim(0, max(0.05, log["dead"].max() * 1.1))
    axes[2].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.suptitle(f"{title}: {log['tokens'].iloc[-1]:,} tokens at {speed:,.0f} a second", x=0.01, ha="left")
    return figure


def density(latents: pd.DataFrame, title: str) -> Figure:
    """How often the latents fire on held-out tokens, and how strongly; latents is latents.parquet."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    frequency = latents["frequency_held_out"].to_numpy()
    fires = frequency > 0
    left.hist(np.log10(frequency[fires]), bins=np.arange(-6, 0.01, 0.2), color=ACCENT)
    left.axvline(-1, color=INK, linestyle=":", linewidth=1)
    left.text(-0.97, 0.97, f"dense:\n{(frequency > 0.1).mean():.1%}", transform=left.get_xaxis_transform(), va="top")
    left.xaxis.set_major_formatter(lambda value, _place: f"{100 * 10**value:g}%")
    low = np.floor(np.log10(frequency[fires].min())) if fires.any() else -6
    left.set(
        title=f"{fires.sum():,} of {len(latents):,} latents fire on held-out tokens",
        xlabel="share of the held-out tokens on which a latent fires",
        ylabel="latents",
        xlim=(low, 0),
    )
    alive = latents[(latents["status"] == "alive") & fires]
    right.scatter(alive["frequency_held_out"], alive["mean_activation"], s=5, color=ACCENT, alpha=0.4, linewidths=0)
    right.set(
        xscale="log",
        title="Strength against frequency, a dot per latent",
        xlabel="share of the held-out tokens",
        ylabel="mean activation when it fires",
    )
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def choose_latents(latents: pd.DataFrame, count: int, flagged: bool = False, seed: int = 0) -> dict[str, list[int]]:
    """Returns which latents a sheet shows: half picked for their class, half drawn blindly from those alive.

    Picked: the highest top_mcc of the confirmed, each class once, so that one loud class does not fill the sheet. Where
    no latent has a class, all are drawn.

    Args:
        latents: latents.parquet.
        flagged: also latents with a role, that is, which follow a position or artefact tokens.
    """
    alive = latents[latents["status"] == "alive"]
    if not flagged:
        alive = alive[alive["role"] == ""]
    named = alive[alive["confirmed"]].sort_values(["top_mcc", "latent"], ascending=[False, True])
    picked = named.drop_duplicates(["top_attribute", "top_class"])["latent"].head(count // 2).tolist()
    rest = alive.loc[~alive["latent"].isin(picked), "latent"].to_numpy()
    drawn = np.random.default_rng(seed).choice(rest, min(count - len(picked), len(rest)), replace=False)
    return {"Picked: the clearest class each": picked, "Drawn blindly from all that fire": sorted(drawn.tolist())}


def shown(images: pd.DataFrame, chosen: list[int], most: int) -> pd.DataFrame:
    """Returns the rows of images.parquet that a sheet shows: `most` top images, one of each quartile, two silent."""
    limit = images["panel"].map({"top": most, "silent": 2}).fillna(1)
    return images[images["latent"].isin(chosen) & (images["rank"] <= limit)]


def sheet(
    groups: dict[str, list[int]],
    latents: pd.DataFrame,
    images: pd.DataFrame,
    manifest: pd.DataFrame,
    pictures: dict[int, np.ndarray],
    heat: dict[tuple[int, int], np.ndarray],
    title: str,
) -> Figure:
    """A row per latent: its strongest images, some of lower quartiles, some on which it is silent; lit where it fires.

    Args:
        groups: headings and the latents under them, from `choose_latents`.
        latents: latents.parquet.
        images: from `shown`.
        pictures: image id -> uint8 [height, width, 3] as the model saw it.
        heat: (latent, image id) -> activation on each patch [rows, columns]; absent where no patches were encoded.
    """
    rows = [(heading, latent) for heading, chosen in groups.items() for latent in chosen]
    most = int(images.loc[images["panel"] == "top", "rank"].max()) if len(images) else 1
    # Left edges in inches, of the picture's columns: three blocks with a gap between.
    left = {("top", rank): 2.5 + 1.25 * (rank - 1) for rank in range(1, most + 1)}
    left |= {(name, 1): 2.75 + 1.25 * (most + place) for place, name in enumerate(("q75", "q50", "q25"))}
    left |= {("silent", rank): 3.0 + 1.25 * (most + 2 + rank) for rank in (1, 2)}
    headings = {"top": "strongest images", "q75": "at 75 %", "q50": "50 %", "q25": "25 % of its images"}
    headings |= {"silent": "silent on these"}
    height = 0.8 + 1.52 * max(1, len(rows)) + 0.55 * len(groups)
    figure = plt.figure(figsize=(3.0 + 1.25 * (most + 5), height), layout="none")
    if not rows:
        figure.text(0.5, 0.5, "No latent fires: there is nothing to show.", ha="center")
        return figure
    width, inch = figure.get_figwidth(), 1 / height
    figure.text(0.01, 1 - 0.25 * inch, title, fontweight="bold", va="center", fontsize=11)
    legend = "Lit: where the latent fires. Box: its strongest patch. Below: activation and label; * held-out image."
    figure.text(0.01, 1 - 0.47 * inch, legend, va="center", color=INK)
    facts, labels = latents.set_index("latent"), manifest.set_index("id")
    y, heading_before = 1 - 0.62 * inch, None
    for heading, latent in rows:
        if heading != heading_before:
            y -= 0.5 * inch
            figure.text(0.01, y + 0.25 * inch, heading, fontweight="bold", color=ACCENT, va="center")
            for panel, words in headings.items():
                figure.text(left[panel, 1] / width, y + 0.04 * inch, words, va="center", color=INK, fontsize=8)
            heading_before = heading
        y -= 1.52 * inch
        figure.text(0.01, y + 0.85 * inch, _facts(latent, facts.loc[latent]), va="center", fontsize=8.5)
        for image in images[images["latent"] == latent].itertuples():
            place = left[image.panel, image.rank] / width
            axes = figure.add_axes((place, y + 0.27 * inch, 1.18 / width, 1.18 * inch))
            map_ = heat.get((latent, image.image_id))
            _picture(axes, pictures[image.image_id], map_, image.token_row, image.token_col)
            label = labels.at[image.image_id, "label"]
            star = "*" if image.split == HELD_OUT else ""
            text = f"{image.activation:.1f}{star} "
            text += _short(describe(label).split("/")[-1]) if isinstance(label, str) else ""
            axes.set_title(text, y=-0.17, fontsize=7.5, fontweight="normal", loc="left", color=INK)
    return figure


def _facts(latent: int, fact: pd.Series) -> str:
    """Returns what a sheet says of a latent: how often it fires, its class or that it has none, its flags."""
    lines = [
        f"latent {latent}",
        f"fires on {fact['frequency']:.2%} of tokens,",
        f"{fact['image_frequency']:.0%} of images",
    ]
    if fact["confirmed"]:
        kind = "" if fact["top_attribute"] == "label" else f"{fact['top_attribute']}: "
        lines.append(fill(kind + fact["top_name"], 26))
        scores = f"precision {fact['top_precision_held_out']:.0%}, recall {fact['top_recall_held_out']:.0%}"
        lines += [scores, "(on held-out images)"]
    else:
        lines.append("no class" if pd.notna(fact["top_mcc"]) else "no class: too few images")
    if fact["role"]:
        lines.append(f"flagged: {fact['role']}")
    return "\n".join(lines)


def _short(text: str, most: int = 18) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _picture(axes: plt.Axes, picture: np.ndarray, heat: np.ndarray | None, row: int, column: int) -> None:
    """Draws the image, darkened where the latent is silent, with a box around patch (row, column)."""
    height, width = picture.shape[:2]
    shown = picture.astype(float) / 255
    if heat is not None:
        strength = heat / max(heat.max(), 1e-12)
        full = np.kron(strength, np.ones((-(-height // heat.shape[0]), -(-width // heat.shape[1]))))[
            :height, :width, None
        ]
        shown = shown * (0.45 + 0.55 * full)
    axes.imshow(shown, interpolation="nearest")
    if heat is not None and row >= 0:
        h, w = height / heat.shape[0], width / heat.shape[1]
        axes.add_patch(
            plt.Rectangle((column * w - 0.5, row * h - 0.5), w, h, fill=False, edgecolor="#ff3b00", linewidth=1.6)
        )
    axes.set_axis_off()


def class_bars(
    groups: dict[str, list[int]], latents: pd.DataFrame, classes: pd.DataFrame, title: str, most: int = 5
) -> Figure:
    """Class bars: for each latent of a sheet that has a class, the best classes of its attribute, on both splits.

    Args:
        groups: headings and the latents under them, from `choose_latents`.
        latents, classes: latents.parquet and classes.parquet.
    """
    chosen = [latent for part in groups.values() for latent in part]
    facts = latents.set_index("latent")
    with_class = [latent for latent in chosen if isinstance(facts.at[latent, "top_class"], str)]
    if not with_class:
        figure = plt.figure(figsize=(8, 2))
        figure.text(0.5, 0.5, "No class to show: the images have no labels, or no shown latent has one.", ha="center")
        return figure
    columns = min(4, len(with_class))
    rows = -(-len(with_class) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 0.6 + 1.9 * rows), squeeze=False)
    for ax in axes.flat[len(with_class) :]:
        ax.set_axis_off()
    for ax, latent in zip(axes.flat, with_class, strict=False):
        attribute = facts.at[latent, "top_attribute"]
        part = (
            classes[(classes["latent"] == latent) & (classes["attribute"] == attribute)].sort_values("rank").head(most)
        )
        places = np.arange(len(part))[::-1]
        ax.barh(places + 0.2, part["score"], 0.38, color=ACCENT, label="train")
        ax.barh(places - 0.2, part["score_held_out"].fillna(0), 0.38, color=QUIET, label="held out")
        names = [
            f"{_short(n, 20)}{' ✓' if ok else ''} ({a}+{b})"
            for n, a, b, ok in part[["name", "support", "support_held_out", "confirmed"]].itertuples(index=False)
        ]
        ax.set_yticks(places, names, fontsize=7.5)
        ax.grid(axis="y", visible=False)
        ax.set_title(f"latent {latent}" + ("" if attribute == "label" else f" by {attribute}"))
    axes[0, 0].legend(fontsize=7.5, loc="lower right")
    figure.supxlabel(
        "mean over the class's images of the latent's strongest activation (train + held-out images of the class); "
        "✓ confirmed on held-out images",
        fontsize=9,
    )
    figure.suptitle(title, x=0.01, ha="left")
    return figure
