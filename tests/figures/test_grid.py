"""The figures that compare the grid's points."""

import numpy as np
import pandas as pd
import pytest
from written import written

from sae.figures import grid, style


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
    rows = [
        {"layer": layer, "k": k, "method": "topk", "seed": s, "fvu": 1 / k, "l0": k, "dead": 0.1, "top1_agreement": 0.9}
        | {"top1_agreement_mean_ablated": 0.1, "ce_recovered_mean": 0.8, "accuracy": 0.7, "accuracy_clean": 0.9}
        | {"tokens": 9000, "images": 50}
        for layer in (0, 11) for k in (4, 64) for s in (0, 1)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
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
    rows = [
        {"layer": 0, "k": k, "method": method, "seed": 0, "fvu": 1 / k, "l0": k, "dead": 0.1, "top1_agreement": 0.9}
        | {"top1_agreement_mean_ablated": 0.1, "ce_recovered_mean": 0.8, "accuracy": 0.7, "accuracy_clean": 0.9}
        | {"tokens": 9000, "images": 50}
        for k in (4, 64) for method in ("topk", "relu")
    ]  # fmt: skip
    figure = grid.layers(pd.DataFrame(rows), bands(pd.DataFrame(rows)))
    assert [t.get_text() for t in figure.axes[1].get_legend().get_texts()] == ["k = 4", "k = 64", "relu", "topk"]
    marks = {line.get_marker() for line in figure.axes[0].get_lines()}
    assert len(marks) == 2


def test_other_ks_shows_every_layer_and_rings_the_trained_k(tmp_path):
    rows = [
        {"layer": layer, "k": k, "method": "topk", "seed": 0, "at_k": n, "fvu": 1 / n, "l0": n}
        for layer in (0, 3, 6, 9, 11) for k in (4, 16) for n in (1, 4, 16, 64)
    ]  # fmt: skip
    figure = grid.other_ks(pd.DataFrame(rows))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [t for t in titles if t] == [f"layer {n}" for n in (0, 3, 6, 9, 11)]
    rings = [line.get_xdata()[0] for line in figure.axes[1].get_lines() if line.get_markersize() == 10]
    assert sorted(rings) == [4, 16]
    style.save(figure, tmp_path / "a.png")


def test_layers_shows_the_saes_among_all_baselines():
    rows = [
        {"layer": layer, "k": k, "method": m, "seed": 0, "fvu": value, "l0": k, "dead": 0.1, "top1_agreement": 0.9}
        | {"top1_agreement_mean_ablated": 0.1, "ce_recovered_mean": 0.8, "accuracy": 0.7, "accuracy_clean": 0.9}
        | {"tokens": 9000, "images": 50}
        for layer in (0, 6) for k in (4, 8)
        for m, value in [("topk", 0.11 * k), *((b, 0.7) for b in style.BASELINE_MARKS)]
    ]  # fmt: skip
    figure = grid.layers(pd.DataFrame(rows), bands(pd.DataFrame(rows)))
    lines = [line for line in figure.axes[1].lines if line.get_linestyle() == "-"]
    assert sorted(line.get_ydata()[0] for line in lines) == [0.44, 0.88]
    assert figure.get_suptitle().startswith("Layers compared: 4 SAEs and their baselines on 9,000 held-out tokens")
    heights = [band.get_paths()[0].get_extents().height for band in figure.axes[1].collections]
    assert sorted(heights)[:2] == pytest.approx([0.2 * 0.44, 0.2 * 0.88])  # the SAEs' intervals
    assert len(heights) == 2
    named = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert named == list(style.BASELINE_MARKS)


def test_other_ks_says_when_there_are_none():
    empty = pd.DataFrame(columns=["layer", "k", "method", "at_k", "fvu", "l0"])
    figure = grid.other_ks(empty)
    assert "exceeds the number of latents" in figure.axes[0].texts[0].get_text()
