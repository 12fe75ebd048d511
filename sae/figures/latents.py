"""Figures of one dictionary's latents: their density, their images and their classes."""

from __future__ import annotations

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from sae.evidence.measures import DENSE
from sae.figures.style import ACCENT, INK, QUIET, headline, say, shorten, styled
from sae.images import HELD_OUT, describe

_PITCH, _SIDE, _DPI = 1.25, 1.18, 110  # of a sheet's pictures, inches; and their resolution


@styled
def density(latents: pd.DataFrame, title: str) -> Figure:
    """How often the latents fire on held-out tokens, and how strongly; latents is latents.parquet."""
    figure = Figure(figsize=(10, 3.6))
    left, right = figure.subplots(1, 2)
    frequency = latents["frequency_held_out"].to_numpy()
    fires = frequency > 0
    left.hist(np.log10(frequency[fires]), bins=np.arange(-6, 0.01, 0.2), color=ACCENT)
    left.axvline(np.log10(DENSE), color=INK, linestyle=":", linewidth=1)
    words = f"dense:\n{(frequency > DENSE).mean():.1%}\nof latents"
    left.text(np.log10(DENSE) + 0.03, 0.97, words, transform=left.get_xaxis_transform(), va="top")
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
        title="Mean activations (a dot per latent)",
        xlabel="share of the held-out tokens on which a latent fires",
        ylabel="mean activation on these tokens",
    )
    right.xaxis.set_major_formatter(lambda value, _place: f"{100 * value:g}%")
    headline(figure, title)
    return figure


def choose_latents(latents: pd.DataFrame, count: int, seed: int = 0) -> dict[str, list[int]]:
    """Chooses the latents of a sheet: half picked for their class, half drawn at random from those alive.

    Latents with a token type, which follow a position or artefact tokens, are left out.

    The picked latents are the confirmed ones of highest top_mcc, one per class, so that no class fills the sheet. If no
    latent has a class, all are drawn at random.

    Args:
        latents: latents.parquet.

    Returns:
        heading -> latents.
    """
    alive = latents[(latents["status"] == "alive") & (latents["token_type"] == "")]
    named = alive[alive["confirmed"]].sort_values(["top_mcc", "latent"], ascending=[False, True])
    picked = named.drop_duplicates(["top_attribute", "top_class"])["latent"].head(count // 2).tolist()
    others = alive.loc[~alive["latent"].isin(picked), "latent"].to_numpy()
    drawn = np.random.default_rng(seed).choice(others, min(count - len(picked), len(others)), replace=False)
    return {
        "Picked: latents with the clearest classes": picked,
        "Drawn at random; latents with a token type are left out": sorted(drawn.tolist()),
    }


def shown(images: pd.DataFrame, chosen: list[int], most: int) -> pd.DataFrame:
    """Returns the rows of images.parquet that a sheet shows: `most` top images, one of each quartile, two silent."""
    limit = images["panel"].map({"top": most, "silent": 2}).fillna(1)
    return images[images["latent"].isin(chosen) & (images["rank"] <= limit)]


@styled
def sheet(
    groups: dict[str, list[int]],
    latents: pd.DataFrame,
    images: pd.DataFrame,
    manifest: pd.DataFrame,
    pictures: dict[int, np.ndarray],
    heat: dict[tuple[int, int], np.ndarray],
    title: str,
) -> Figure:
    """A row per latent: its strongest images, images of each quartile and silent ones; patches are bright where it
    fires.

    Args:
        groups: headings and the latents under them, from `choose_latents`.
        latents: latents.parquet.
        images: from `shown`.
        pictures: image id -> uint8 [height, width, 3] as the ViT saw it.
        heat: (latent, image id) -> activation on each patch [rows, columns]; not needed for silent images, and empty
            where patches have no codes.
    """
    most = int(images.loc[images["panel"] == "top", "rank"].max()) if len(images) else 1
    # Left edges of the pictures, inches: three blocks with a gap between.
    left = {("top", rank): 2.5 + _PITCH * (rank - 1) for rank in range(1, most + 1)}
    left |= {(name, 1): 2.75 + _PITCH * (most + place) for place, name in enumerate(("q75", "q50", "q25"))}
    left |= {("silent", rank): 3.0 + _PITCH * (most + 2 + rank) for rank in (1, 2)}
    headings = {"top": "strongest images", "q75": "75th percentile", "q50": "median", "q25": "25th percentile"}
    headings |= {"silent": "silent images"}
    rows = sum(map(len, groups.values()))
    width, height = 3.0 + _PITCH * (most + 5), 0.8 + 1.52 * max(1, rows) + 0.55 * len(groups)
    figure = Figure(figsize=(width, height), layout="none")  # type: ignore[arg-type]  # matplotlib's annotation leaves "none" out
    axes = figure.add_axes((0, 0, 1, 1))  # one for all pictures: 132 axes take a second
    axes.set(xlim=(0, width), ylim=(height, 0))  # inches from the top left
    if not rows:
        say(axes, "No latent fires: there is nothing to show.")
        return figure
    axes.set_axis_off()
    axes.text(0.12, 0.25, title, fontweight="bold", va="center", fontsize=11)
    legend = "Bright: the latent fires here. Box: its strongest patch. Below: activation and label (* held-out image)."
    axes.text(0.12, 0.47, legend, va="center", color=INK)
    facts, labels = latents.set_index("latent"), manifest.set_index("id")["label"]
    y = 0.62
    for heading, chosen in groups.items():
        if chosen:
            y += 0.5
            axes.text(0.12, y - 0.25, heading, fontweight="bold", color=ACCENT, va="center")
            for panel, words in headings.items():
                axes.text(left[panel, 1], y - 0.04, words, va="center", color=INK, fontsize=8)
        for latent in chosen:
            axes.text(0.12, y + 0.67, _facts(latent, facts.loc[latent]), va="center", fontsize=8.5)
            for image in images[images["latent"] == latent].itertuples():
                corner = left[image.panel, image.rank], y + 0.07
                silent = np.zeros((1, 1)) if heat and image.panel == "silent" else None
                map_ = heat.get((latent, image.image_id), silent)
                _picture(axes, corner, pictures[image.image_id], map_, (image.token_row, image.token_col))
                label = labels[image.image_id]
                text = f"{image.activation:.1f}{'*' if image.split == HELD_OUT else ''} "
                text += shorten(describe(label).split("/")[-1]) if isinstance(label, str) else ""
                axes.text(corner[0], y + 1.37, text, fontsize=7.5, color=INK)
            y += 1.52
    return figure


def _facts(latent: int, fact: pd.Series) -> str:
    """Describes a latent for a sheet: how often it fires, its class or that it has none, its token type."""
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
    if fact["token_type"]:
        lines.append(f"flagged: {fact['token_type']}")
    return "\n".join(lines)


def _picture(
    axes: Axes, corner: tuple[float, float], picture: np.ndarray, heat: np.ndarray | None, patch: tuple[int, int]
) -> None:
    """Draws the image at `corner`, dark where the latent is silent, with a box around the patch (row, column)."""
    scale = _SIDE / max(picture.shape[:2])
    height, width = (side * scale for side in picture.shape[:2])
    x, y = corner[0] + (_SIDE - width) / 2, corner[1] + (_SIDE - height) / 2
    if scale * _DPI < 1:  # more pixels than are seen only make the file larger
        size = round(width * _DPI), round(height * _DPI)
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    if heat is not None:
        rows, columns = (np.arange(n) * cells // n for n, cells in zip(picture.shape, heat.shape, strict=False))
        light = 0.45 + 0.55 * heat / max(heat.max(), 1e-12)
        picture = (picture * light[rows][:, columns, None]).astype(np.uint8)
    axes.imshow(picture, interpolation="none", aspect="auto", extent=(x, x + width, y + height, y))
    if heat is not None and heat.max() > 0 and patch[0] >= 0:
        h, w = height / heat.shape[0], width / heat.shape[1]
        at = x + patch[1] * w, y + patch[0] * h
        axes.add_artist(Rectangle(at, w, h, fill=False, edgecolor="#ff3b00", linewidth=1.6))


@styled
def class_bars(
    groups: dict[str, list[int]], latents: pd.DataFrame, classes: pd.DataFrame, title: str, most: int = 5
) -> Figure:
    """For each latent of a sheet that has a class: the best classes of its attribute, on both splits.

    Args:
        groups: headings and the latents under them, from `choose_latents`.
        latents, classes: latents.parquet and classes.parquet.
    """
    top_class, attributes = (latents.set_index("latent")[name] for name in ("top_class", "top_attribute"))
    chosen = [latent for part in groups.values() for latent in part if isinstance(top_class[latent], str)]
    if not chosen:
        figure = Figure(figsize=(8, 2))
        say(figure.subplots(), "No class to show: the images have no labels, or none of these latents has a class.")
        return figure
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3.4 * columns, 0.8 + 1.9 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(chosen) :]:
        ax.set_axis_off()
    for ax, latent in zip(axes.flat, chosen, strict=False):
        attribute = attributes[latent]
        part = classes[(classes["latent"] == latent) & (classes["attribute"] == attribute)]
        part = part.sort_values("rank").head(most)
        places = np.arange(len(part))[::-1]
        ax.barh(places + 0.2, part["score"], 0.38, color=ACCENT, label="train images")
        ax.barh(places - 0.2, part["score_held_out"].fillna(0), 0.38, color=QUIET, label="held-out images")
        names = [
            f"{shorten(name, 20)}{' ✓' if confirmed else ''} ({train}+{held_out})"
            for name, train, held_out, confirmed in part[
                ["name", "support", "support_held_out", "confirmed"]
            ].itertuples(index=False)
        ]
        ax.set_yticks(places, names, fontsize=7.5)
        ax.grid(axis="y", visible=False)
        ax.set_title(f"latent {latent}" + ("" if attribute == "label" else f": {attribute}"))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.supxlabel(
        "the latent's strongest activation on an image, averaged over the images of a class\n"
        "in brackets: train + held-out images of the class; ✓ confirmed on held-out images",
        fontsize=9,
    )
    headline(figure, title)
    return figure
