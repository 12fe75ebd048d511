"""The page that concludes: what an SAE buys here over dictionaries that are none. The answer may be: nothing."""

from __future__ import annotations

from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sae.evidence.summary import MEASURES
from sae.figures.latents import ACCENT, BASELINE_MARKS, INK, QUIET

_SAME_BY_CONSTRUCTION = ("neurons", "pca")  # for every seed: their stability says nothing
_POINT = ["layer", "k", "method", "seed"]


def against_best(compared: pd.DataFrame) -> pd.DataFrame:
    """Returns of `summary.compare` the rows of the baseline with the best value, for each SAE and measure."""
    fair = ~((compared["measure"] == "stability") & compared["baseline"].isin(_SAME_BY_CONSTRUCTION))
    return compared[fair].sort_values([*_POINT, "measure", "gain"]).drop_duplicates([*_POINT, "measure"])


def sentences(best: pd.DataFrame) -> list[str]:
    """Returns what the grid says in words: a sentence on what the SAEs buy, and one per measure."""
    points = len(best[_POINT].drop_duplicates())
    bought, lost, lines = [], [], []
    for measure in (m for m in MEASURES if m in set(best["measure"])):
        part = best[best["measure"] == measure]
        counts = part["verdict"].value_counts()
        better, worse, open_ = (int(counts.get(v, 0)) for v in ("better", "worse", "open"))
        if better > len(part) / 2:
            bought.append(measure)
        if worse > len(part) / 2:
            lost.append(measure)
        rivals = ", ".join(part.loc[part["verdict"] != "better", "baseline"].value_counts().index)
        line = f"{MEASURES[measure][0]}: better than every baseline at {better} of {len(part)} grid points"
        line += f", worse than the best one at {worse}, undecided at {open_}" + (f" (best: {rivals})" if rivals else "")
        lines.append(line + ".")
    words = [[MEASURES[m][0] for m in names] for names in (bought, lost)]
    first = f"Over {points} grid point{'s' if points > 1 else ''}, "
    if bought:
        first += f"the SAE buys over every baseline: {'; '.join(words[0])}."
    else:
        first += "the SAE buys nothing over the best baseline, by any of these measures at most grid points."
    if lost:
        first += f" A baseline does better at: {'; '.join(words[1])}."
    return [first, *lines]


def page(summaries: pd.DataFrame, compared: pd.DataFrame, name: str) -> str:
    """Returns the page as HTML that needs nothing else.

    Args:
        summaries: tables of `summary.table` with layer, k, method and seed; SAEs and baselines.
        compared: from `summary.compare`.
        name: the experiment's.
    """
    best = against_best(compared)
    first, *others = sentences(best)
    parts = [f"<h1>What an SAE buys here: {escape(name)}</h1>", f"<p class=answer>{escape(first)}</p>", "<ul>"]
    parts += [f"<li>{escape(line)}</li>" for line in others]
    parts += [
        "</ul><p>Each cell: the value on held-out images, and the interval that holds 95 % of the values on images",
        "drawn again with replacement (for the last two rows: on latents drawn again). The verdict is about the",
        "difference to the best baseline on the same draws: <b>better</b> or <b>worse</b> where its interval does not",
        "hold 0. Baselines that are the same for every seed by construction do not count for stability.</p>",
    ]
    for (layer, k, method, seed), rows in best.groupby(_POINT, sort=True):
        here = summaries[(summaries["layer"] == layer) & (summaries["k"] == k) & (summaries["seed"] == seed)]
        rivals = [m for m in here["method"].unique() if m in set(compared["baseline"])]
        parts.append(f"<h2>Layer {layer}, k {k}, {escape(method)}, seed {seed}</h2><table><tr><th>measure<th>SAE")
        parts += [f"<th>{escape(rival)}" for rival in rivals] + ["<th>against the best baseline</tr>"]
        cells = here.set_index(["measure", "method"])
        for measure, (words, higher) in MEASURES.items():
            found = rows[rows["measure"] == measure]
            if (measure, method) not in cells.index:
                continue
            arrow = "↑" if higher else "↓"
            parts.append(f"<tr><td>{escape(words)} {arrow}<td><b>{_cell(cells.loc[(measure, method)])}</b>")
            parts += [f"<td>{_cell(cells.loc[(measure, r)]) if (measure, r) in cells.index else '–'}" for r in rivals]
            verdict = found.iloc[0] if len(found) else None
            parts.append(
                "<td>–</tr>" if verdict is None else f"<td class={verdict['verdict']}>{_verdict(verdict)}</tr>"
            )
        parts.append("</table>")
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse;font-size:13px}td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;"
        "text-align:left;vertical-align:top}small{color:#666;white-space:nowrap}.answer{font-size:1.2em}"
        ".better{color:#15803d}.worse{color:#c2410c}.open{color:#666}"
    )
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>What an SAE buys: {escape(name)}</title>"
    return f"{head}<style>{style}</style><body>{' '.join(parts)}</body></html>\n"


def _cell(row: pd.Series) -> str:
    return f"{row['value']:.3f} <small>{row['low']:.3f}–{row['high']:.3f}</small>"


def _verdict(row: pd.Series) -> str:
    words = {"better": "better than", "worse": "worse than", "open": "undecided against"}[row["verdict"]]
    interval = f"({row['low']:+.3f} to {row['high']:+.3f})"
    return f"{words} {escape(row['baseline'])} <small>by {row['gain']:+.3f} {interval}</small>"


def figure(summaries: pd.DataFrame, methods: list[str], title: str) -> Figure:
    """A panel per measure: SAEs with their intervals beside the baselines, over the grid's layers and ks."""
    measures = [m for m in MEASURES if m in set(summaries["measure"])]
    mean = summaries.groupby(["measure", "layer", "k", "method"], as_index=False)[["value", "low", "high"]].mean()
    places = {point: i for i, point in enumerate(sorted({*zip(mean["layer"], mean["k"], strict=True)}))}
    rows = -(-len(measures) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(12, 0.6 + 2.5 * rows), squeeze=False)
    for ax in axes.flat[len(measures) :]:
        ax.set_axis_off()
    for ax, measure in zip(axes.flat, measures, strict=False):
        words, higher = MEASURES[measure]
        for method, part in mean[mean["measure"] == measure].groupby("method", sort=False):
            x = np.array([places[point] for point in zip(part["layer"], part["k"], strict=True)])
            if method in methods:
                x = x + 0.12 * (methods.index(method) - (len(methods) - 1) / 2)
                error = np.abs(part[["low", "high"]].to_numpy() - part[["value"]].to_numpy()).T
                ax.errorbar(x, part["value"], error, fmt="o", color=ACCENT, label=f"SAE ({method})", zorder=3)
            else:
                ax.plot(
                    x,
                    part["value"],
                    BASELINE_MARKS[method],
                    color=INK if method == "pca" else QUIET,
                    label=method,
                    ms=6,
                )
        ax.set_title(f"{words[0].upper()}{words[1:]} {'↑' if higher else '↓'}")
        ax.set_xticks(list(places.values()), [f"layer {layer}\nk {k}" for layer, k in places])
        ax.margins(x=0.08)
        ax.grid(axis="x", visible=False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(
        f"{title} (bars: 95 % intervals; arrows: which way is better)", x=0.01, ha="left", fontweight="bold"
    )
    return figure
