"""The figures that compare the grid's points."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from written import written

from sae.autoencoder import METHODS
from sae.figures import grid, style


def rows(layers, ks, methods=("topk",), seeds=(0,), fvu=lambda k, _method: 1 / k):
    """The metrics of a grid; `fvu` is a function of k and method."""
    table = pd.DataFrame(
        [(layer, k, method, seed, fvu(k, method), k) for layer, k, method, seed in product(layers, ks, methods, seeds)],
        columns=["layer", "k", "method", "seed", "fvu", "l0"],
    )
    known = {"dead": 0.1, "top1_agreement": 0.9, "top1_agreement_mean_ablated": 0.1, "ce_recovered_mean": 0.8}
    return table.assign(**known, accuracy=0.7, accuracy_clean=0.9, tokens=9000, images=50)


def bands(table):
    """FVU's intervals for a table of metrics."""
    return table[["layer", "k", "method"]].assign(low=0.9 * table["fvu"], high=1.1 * table["fvu"])


@pytest.mark.parametrize(
    "missing",
    [
        (),
        ("accuracy", "accuracy_clean"),
        ("top1_agreement", "top1_agreement_mean_ablated", "ce_recovered_mean", "accuracy", "accuracy_clean"),
    ],
)
def test_layers_of_any_grid(tmp_path, missing):
    table = rows((0, 11), (4, 64), seeds=(0, 1))
    table[list(missing)] = np.nan
    figure = grid.layers(table, bands(table))
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]
    assert len(set(titles)) == 6 and "Dead latents" in titles
    if missing:
        assert "not known" in written(figure)
    style.save(figure, tmp_path / "a.svg")
    style.save(grid.layers(table, bands(table)), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    style.save(grid.layers(table.head(1), bands(table.head(1))), tmp_path / "one.png")


def test_methods_are_told_apart():
    every = grid.layers(rows((0,), (4,), METHODS), bands(rows((0,), (4,), METHODS)))
    assert {*METHODS} <= {text.get_text() for text in every.axes[1].get_legend().get_texts()}
    table = rows((0,), (4, 64), ("topk", "relu"))
    figure = grid.layers(table, bands(table))
    assert [t.get_text() for t in figure.axes[1].get_legend().get_texts()] == ["k = 4", "k = 64", "relu", "topk"]
    marks = {line.get_marker() for line in figure.axes[0].get_lines()}
    assert len(marks) == 2


def test_other_ks_shows_every_layer_and_rings_the_trained_k(tmp_path):
    table = rows((0, 3, 6, 9, 11), (4, 16)).merge(pd.DataFrame({"at_k": (1, 4, 16, 64)}), how="cross")
    figure = grid.other_ks(table.assign(fvu=1 / table["at_k"], l0=table["at_k"]))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [t for t in titles if t] == [f"layer {n}" for n in (0, 3, 6, 9, 11)]
    rings = [line.get_xdata()[0] for line in figure.axes[1].get_lines() if line.get_markersize() == 10]
    assert sorted(rings) == [4, 16]
    style.save(figure, tmp_path / "a.png")


def test_layers_shows_the_best_baseline_beside_each_sae():
    others = dict(zip(style.BASELINE_MARKS, np.linspace(0.9, 0.6, len(style.BASELINE_MARKS)), strict=True))
    table = rows((0, 6), (4, 8), ("topk", *others), fvu=lambda k, m: others.get(m, 0.11 * k))
    table["accuracy"] = table["method"].map({"topk": 0.5, "ica": 0.9}).fillna(0.1)
    figure = grid.layers(table, bands(table))
    lines = [line for line in figure.axes[1].lines if line.get_linestyle() == "-"]
    assert sorted(line.get_ydata()[0] for line in lines) == [0.44, 0.88]
    assert figure.get_suptitle().startswith("Layers compared: 4 SAEs and their baselines on 9,000 held-out tokens")
    heights = [band.get_paths()[0].get_extents().height for band in figure.axes[1].collections]
    assert sorted(heights)[:2] == pytest.approx([0.2 * 0.44, 0.2 * 0.88])  # the SAEs' intervals
    assert len(heights) == 2
    lowest, highest = min(others, key=others.get), "ica"
    for number, method, height in (1, lowest, others[lowest]), (5, highest, 0.9):
        marks = [line for line in figure.axes[number].lines if line.get_marker() == style.BASELINE_MARKS[method]]
        assert {y for line in marks for y in line.get_ydata()} == {height}
        low, high = figure.axes[number].get_ylim()
        assert low <= height <= high
    named = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert {lowest, highest} <= named and len(named) < len(others)


def test_other_ks_says_when_there_are_none():
    empty = pd.DataFrame(columns=["layer", "k", "method", "at_k", "fvu", "l0"])
    figure = grid.other_ks(empty)
    assert "exceeds the number of latents" in figure.axes[0].texts[0].get_text()
