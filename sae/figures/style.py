"""The style of all figures. It holds while a figure is drawn and saved; a notebook's settings do not change."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from sae.files import whole

INK, ACCENT, QUIET, CONTROL = "#222222", "#c2410c", "#9aa0a6", "#2563eb"
# One colour for a layer and one for a k in every figure; the explorer has the same scales.
SCALES = {"layer": ("viridis", 0.82), "k": ("plasma", 0.8)}
BASELINE_MARKS = {
    **{"neurons": "s", "pca": "^", "ica": "p", "kmeans": "D", "random": "x", "sampled": "+"},
    **{"frozen": "v", "soft_frozen": "<", "frozen_encoder": ">"},
}
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
# Decorates every function that draws or saves.
styled = matplotlib.rc_context(
    {
        "figure.constrained_layout.use": True,
        "figure.facecolor": "white",
        "figure.titleweight": "bold",
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
        "text.parse_math": False,  # names of classes may hold dollar signs
        "svg.fonttype": "none",
        "svg.hashsalt": "sae",  # the same table gives the same file
    }
)


@styled
def save(figure: Figure, path: str | Path) -> None:
    """Writes the figure as SVG or PNG, by the file's ending; equal figures give identical files."""
    with whole(path) as part, warnings.catch_warnings():
        # One for each unusual character of a name, with that character.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(part, dpi=110, metadata={"Date": None} if Path(path).suffix == ".svg" else None)
        if Path(path).suffix == ".svg":  # Matplotlib writes names of classes with whatever characters they have
            part.write_text(_NOT_XML.sub("\ufffd", part.read_text("utf-8")), "utf-8")


def colours(kind: str, values: Iterable[int]) -> dict[int, tuple[float, float, float, float]]:
    """Returns a colour for each of the grid's layers (`kind` layer) or ks, dark to light in their order."""
    name, end = SCALES[kind]
    ordered = sorted({*values})
    return dict(zip(ordered, matplotlib.colormaps[name](np.linspace(0, end, len(ordered))), strict=True))


def headline(figure: Figure, text: str) -> None:
    """Writes the figure's title at its left edge."""
    figure.suptitle(text, x=0.01, ha="left")


def say(axes: Axes, words: str) -> None:
    """Writes a sentence in place of a plot that has nothing to show."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=INK)
    axes.set_axis_off()


def plain_numbers(axis: Axis) -> None:
    """Writes the ticks of a logarithmic axis as 0.04 and 60, not as powers of ten, which take long to typeset."""

    def minor(value: float, _place: float) -> str:
        low, high = axis.get_view_interval()
        return f"{value:g}" if f"{value:e}"[0] in "246" and high < 1000 * low else ""

    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(lambda value, _place: f"{value:g}")
    axis.set_minor_formatter(minor)


def shorten(text: str, most: int = 18) -> str:
    """Returns the text cut to `most` characters, the last one an ellipsis where something was cut."""
    return text if len(text) <= most else text[: most - 1] + "…"
