"""The figure of two experiments: their similar layers, the latents that both have, and their measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from sae.evidence.compare import OTHER, THIS
from sae.evidence.measures import COMPARED, FOUND, MEASURES
from sae.figures.style import ACCENT, CONTROL, INK, QUIET, colours, headline, say, shorten, styled

_OUTCOMES = {  # meaning, colour of the bar, of the number in it
    "both": ("in both", INK, "white"),
    "one": ("only in this one, and found by another seed", ACCENT, "white"),
    "unsure": ("unsure: not found by another seed", "#cfd3d8", INK),
    "silent": ("silent on these images", "#ffffff", INK),
}
_SIDES = (THIS, OTHER)


@styled
def compare(latents: pd.DataFrame, table: pd.DataFrame, names: tuple[str, str], why: str = "") -> Figure:
    """For each k and method, similar layers on the left, shared latents on the right; below, the gains by all measures.

    Args:
        latents, table: of `evidence.compare.Comparison`; without latents, `why` stands in their place.
        names: of the two experiments.
    """
    kinds = [*latents.loc[latents["of"] == THIS].groupby(["k", "method"]).groups] if len(latents) else []
    measures = [key for key in COMPARED if key in set(table["measure"])]
    points = table.loc[table["measure"].isin(measures), ["layer", "k", "method", "seed"]].drop_duplicates()
    heights = [0.33 * max(len(_layers(latents, kind, table)), 4) for kind in kinds] or [0.3]
    last = max(0.3, len(measures) * max(0.26, 0.06 * len(points)))
    width, height = 11, 0.5 + sum(heights) + 1.1 * len(heights) + 0.3 + 0.4 + last + 0.6
    # In inches: the solver of automatic layouts gives places whose last digits differ from run to run.
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")

    def axes(left: float, top: float, wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    top = 1.0
    if not kinds:
        say(axes(0.6, top, width - 1.2, heights[0]), why)
    for high, kind in zip(heights, kinds, strict=False):
        _similar(axes(0.65, top, 3.5, high), table, kind, names)
        _shared(axes(6.2, top, 4.4, high), latents, table, kind, names)
        top += high + 1.1
    if kinds:
        handles, words = figure.axes[-1].get_legend_handles_labels()
        handles, words = handles[1:] + handles[:1], words[1:] + words[:1]  # the control is a line, which comes first
        place = (10.7 / width, 1 - (top - 0.75) / height)
        figure.legend(handles, words, loc="upper right", bbox_to_anchor=place, ncols=2, fontsize=8)
    bottom = axes(2.3, height - last - 0.6, 7.2, last)
    _gains(bottom, table[table["measure"].isin(measures)], measures, points, names)
    headline(figure, f"{names[0]} compared with {names[1]}")
    return figure


def _rows(table: pd.DataFrame, kind: tuple[int, str], measure: str) -> pd.DataFrame:
    return table[(table["measure"] == measure) & (table["k"] == kind[0]) & (table["method"] == kind[1])]


def _named(table: pd.DataFrame, kind: tuple[int, str]) -> str:
    k, method = kind
    row = _rows(table, kind, "similarity").iloc[0]
    other = row["other_k"], row["other_method"]
    return f"k {k}, {method}" + (f" and k {other[0]}, {other[1]}" if other != kind else "")


def _similar(axes: Axes, table: pd.DataFrame, kind: tuple[int, str], names: tuple[str, str]) -> None:
    rows = _rows(table, kind, "similarity")
    means = rows.assign(mean=(rows["value"] + rows["value_other"]) / 2).pivot_table("mean", "layer", "other_layer")
    axes.imshow(means, cmap="Greys", vmin=0, vmax=1.15, aspect="auto")
    size = 8 if means.size <= 144 else 5
    for i, j in np.ndindex(*means.shape):
        value = means.iloc[i, j]
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=size, color="white" if value > 0.6 else INK)
    for i, j in enumerate(means.fillna(-1).to_numpy().argmax(1)):
        axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor=ACCENT, linewidth=2.5))
    axes.set_xticks(range(means.shape[1]), means.columns)
    axes.set_yticks(range(means.shape[0]), means.index)
    axes.grid(visible=False)
    axes.set(xlabel=f"layer of {shorten(names[1], 30)}", ylabel=f"layer of {shorten(names[0], 30)}")
    axes.set_title(f"Similar layers: {_named(table, kind)}\n", fontsize=10)
    controls = [
        ("random dictionaries", ["random", "random_other"]),
        ("images shuffled", ["shuffled", "shuffled_other"]),
    ]
    told = [
        f"{name} {rows[columns].mean(axis=None):.2f}"
        for name, columns in controls
        if rows[columns].notna().any(axis=None)
    ]
    axes.text(0, 1.02, "mean correlation of best matches; " + ", ".join(told), transform=axes.transAxes, fontsize=8)


def _layers(latents: pd.DataFrame, kind: tuple[int, str], table: pd.DataFrame) -> dict[tuple[str, int], pd.DataFrame]:
    """Returns the latents of each layer of both experiments, of the SAEs that are compared at this k and method."""
    pairs = _rows(table, kind, "similarity")
    found: dict[tuple[str, int], pd.DataFrame] = {}
    for of, start in zip(_SIDES, ("", "other_"), strict=True):
        kinds = {*pairs[[f"{start}k", f"{start}method"]].itertuples(index=False, name=None)}
        here = latents[(latents["of"] == of) & latents[["k", "method"]].apply(tuple, axis=1).isin(kinds)]
        if of == OTHER:  # its latents have a row for each own kind that they are matched with
            here = here[(here[["match_k", "match_method"]] == list(kind)).all(axis=1)]
        found |= {(of, int(layer)): part for layer, part in here.groupby("layer")}
    return found


def _shared(
    axes: Axes, latents: pd.DataFrame, table: pd.DataFrame, kind: tuple[int, str], names: tuple[str, str]
) -> None:
    layers = _layers(latents, kind, table)
    shares = pd.DataFrame([part["outcome"].value_counts(normalize=True) for part in layers.values()])
    shares = shares.reindex(columns=list(_OUTCOMES), fill_value=0).fillna(0)
    y, left = np.arange(len(layers)), np.zeros(len(layers))
    for outcome, (meaning, colour, text) in _OUTCOMES.items():
        share = shares[outcome].to_numpy()
        if not share.any():
            continue
        look: dict[str, Any] = {"color": colour, "edgecolor": QUIET, "linewidth": 0.5, "label": meaning}
        axes.barh(y, share, left=left, height=0.75, **look)
        for at, end, s in zip(y.tolist(), left + share, share, strict=True):
            if s >= 0.05:  # at the bar's end, clear of the control's line
                axes.text(end - 0.005, at, f"{s:.0%}", ha="right", va="center", color=text, fontsize=8)
        left += share
    chance = [(part["random"] >= FOUND).mean() if part["random"].notna().any() else np.nan for part in layers.values()]
    if not np.isnan(chance).all():
        axes.vlines(chance, y - 0.375, y + 0.375, color=CONTROL, linewidth=2.5, label="control: in random dictionaries")
    axes.set_yticks(y, [f"{shorten(names[_SIDES.index(of)], 24)}, layer {layer}" for of, layer in layers])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(xlim=(0, 1), title="Latents that both experiments have")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _gains(axes: Axes, table: pd.DataFrame, measures: list[str], points: pd.DataFrame, names: tuple[str, str]) -> None:
    if not measures:
        say(axes, "Nothing was measured in both experiments.")
        return
    of_layer = colours("layer", table["layer"])
    step = 0.7 / max(len(points), 1)
    for n, point in enumerate(points.itertuples(index=False)):
        rows = table[(table[["layer", "k", "method", "seed"]] == list(point)).all(axis=1)]
        y = rows["measure"].map(measures.index) + step * (n - (len(points) - 1) / 2)
        error = np.abs(rows[["low", "high"]].to_numpy() - rows[["gain"]].to_numpy()).T
        colour = of_layer[point.layer]
        axes.errorbar(rows["gain"], y, xerr=error, fmt="o", ms=4, color=colour, elinewidth=1)
    for layer, colour in of_layer.items():
        axes.plot([], [], "o", ms=4, color=colour, label=f"layer {layer}")
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(measures)), [MEASURES[key].name for key in measures])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    limit = 1.05 * float(np.nanmax(np.abs(axes.get_xlim())))
    a, b = (shorten(name, 24) for name in names)
    axes.set(xlim=(-limit, limit), xlabel=f"← {b} is better  |  difference, with 95 % intervals  |  {a} is better →")
    axes.set_title(f"Measures, each SAE of {a} against that of {b} at the nearest depth")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title=f"{a}:", alignment="left")
