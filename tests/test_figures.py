"""Figures are looked at by people; here only what can be checked: that they hold what they should and never fail."""

import numpy as np
import pandas as pd
import pytest

from sae.figures import grid
from sae.figures import latents as figures


def latents(n=30, classes=True):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "latent": range(n),
            "status": ["dead" if i % 5 == 0 else "alive" for i in range(n)],
            "frequency": rng.uniform(0.001, 0.2, n),
            "frequency_held_out": rng.uniform(0.001, 0.2, n),
            "image_frequency": rng.uniform(0, 1, n),
            "mean_activation": rng.uniform(1, 5, n),
            "max_activation": rng.uniform(5, 9, n),
            "top_attribute": "label" if classes else None,
            "top_class": [f"c{i % 7}" for i in range(n)] if classes else None,
            "top_name": [f"c{i % 7}" for i in range(n)] if classes else None,
            "top_mcc": rng.uniform(0, 1, n) if classes else np.nan,
            "top_precision_held_out": 0.5,
            "top_recall_held_out": 0.25,
            "confirmed": [classes and i % 3 > 0 for i in range(n)],
            "role": ["position" if i == 7 else "" for i in range(n)],
        }
    )
    table.loc[table["status"] == "dead", ["frequency", "frequency_held_out"]] = 0
    return table


def texts(figure):
    found = [t.get_text() for t in figure.texts]
    for axes in figure.axes:
        found += [t.get_text() for t in axes.texts] + [axes.get_title(loc="left"), axes.get_title()]
    return " ".join(found)


def test_dead_latents_are_never_shown_and_half_are_drawn_blindly():
    table = latents()
    groups = figures.choose_latents(table, 10)
    picked, drawn = groups.values()
    assert len(picked) == 5 and len(drawn) == 5 and not set(picked) & set(drawn)
    dead = set(table.loc[table["status"] == "dead", "latent"])
    assert not dead & set(picked + drawn)
    assert table.set_index("latent").loc[picked, "top_class"].is_unique
    assert groups == figures.choose_latents(table, 10)
    assert [len(g) for g in figures.choose_latents(latents(classes=False), 10).values()] == [0, 10]
    assert len(next(iter(figures.choose_latents(table, 100).values()))) == 7
    confirmed = set(table.loc[table["confirmed"], "latent"])
    assert set(picked) <= confirmed
    groups = [figures.choose_latents(table, 100, flagged) for flagged in (False, True)]
    everything = [{latent for part in found.values() for latent in part} for found in groups]
    assert everything[1] - everything[0] == {7}  # the one that follows a position


def test_a_sheet_shows_the_images_with_box_and_heat(tmp_path):
    table = latents()
    groups = figures.choose_latents(table, 4)
    shown = [latent for chosen in groups.values() for latent in chosen]
    panels = [("top", 1, 1), ("top", 2, 2), ("q50", 1, 2), ("silent", 1, 1), ("silent", 3, 2), ("top", 3, 1)]
    images = pd.DataFrame(
        [
            (n, panel, rank, image, 0.0 if panel == "silent" else 9.0 - rank, 1, 2, "held_out")
            for n in range(30)
            for panel, rank, image in panels
        ],
        columns=["latent", "panel", "rank", "image_id", "activation", "token_row", "token_col", "split"],
    )
    images = figures.shown(images, shown, 2)
    assert len(images) == 4 * len(shown)  # no third of the strongest, no third silent one
    manifest = pd.DataFrame({"id": [1, 2], "label": ["a/<b>", "n02123045"]})
    pictures = {i: np.full((32, 48, 3), 200, np.uint8) for i in (1, 2)}
    heat = {(n, i): np.eye(2, 3) for n in shown for i in (1, 2)}
    figure = figures.sheet(groups, table, images, manifest, pictures, heat, "title")
    assert all(f"latent {n}" in texts(figure) for n in shown)
    pictures_drawn = [axes for axes in figure.axes if axes.images]
    assert len(pictures_drawn) == 16
    box = pictures_drawn[0].patches[0]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (31.5, 15.5, 16, 16)
    drawn = np.asarray(pictures_drawn[0].images[0].get_array())
    assert drawn[:16, :16].mean() > 2 * drawn[:16, 16:32].mean()  # bright where the latent fires
    assert "8.0* <b>" in texts(figure) and "7.0* tabby" in texts(figure) and "silent on these" in texts(figure)
    assert "precision 50%, recall 25%" in texts(figure)
    assert "no class" in texts(figure)
    figures.save(figure, tmp_path / "sheet.svg")
    assert "&lt;b&gt;" in (tmp_path / "sheet.svg").read_text()


def test_nothing_to_show_is_said():
    table = latents(3)
    table["status"] = "dead"
    figure = figures.sheet(figures.choose_latents(table, 4), table, pd.DataFrame(), pd.DataFrame(), {}, {}, "t")
    assert "No latent fires" in texts(figure)
    groups = figures.choose_latents(latents(classes=False), 4)
    assert "No class to show" in texts(figures.class_bars(groups, latents(classes=False), pd.DataFrame(), "t"))
    figures.density(table.assign(frequency_held_out=0.0), "t")


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
    assert len(set(titles)) == 6 and "Latents silent on all held-out tokens" in titles
    if missing:
        assert "not known" in texts(figure)
    figures.save(figure, tmp_path / "a.svg")
    figures.save(grid.layers(table, bands(table)), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    figures.save(grid.layers(table.head(1), bands(table.head(1))), tmp_path / "one.png")


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
    rings = [line.get_xdata()[0] for line in figure.axes[0].get_lines() if line.get_markersize() == 10]
    assert sorted(rings) == [4, 16]
    figures.save(figure, tmp_path / "a.png")


def test_layers_shows_the_saes_among_all_baselines():
    rows = [
        {"layer": layer, "k": k, "method": m, "seed": 0, "fvu": value, "l0": k, "dead": 0.1, "top1_agreement": 0.9}
        | {"top1_agreement_mean_ablated": 0.1, "ce_recovered_mean": 0.8, "accuracy": 0.7, "accuracy_clean": 0.9}
        | {"tokens": 9000, "images": 50}
        for layer in (0, 6) for k in (4, 8)
        for m, value in [("topk", 0.11 * k), *((b, 0.7) for b in figures.BASELINE_MARKS)]
    ]  # fmt: skip
    figure = grid.layers(pd.DataFrame(rows), bands(pd.DataFrame(rows)))
    lines = [line for line in figure.axes[1].lines if line.get_linestyle() == "-"]
    assert sorted(line.get_ydata()[0] for line in lines) == [0.44, 0.88]
    title = (
        "Layers compared: 4 SAEs beside their baselines on 9,000 tokens of held-out images, 50 of them through the ViT"
    )
    assert figure.get_suptitle() == title
    heights = [band.get_paths()[0].get_extents().height for band in figure.axes[1].collections]
    assert sorted(heights)[:2] == pytest.approx([0.2 * 0.44, 0.2 * 0.88])  # the SAEs' intervals
    assert len(heights) == 2
    named = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert named == list(figures.BASELINE_MARKS)


def test_a_layer_and_a_k_have_one_colour_in_every_figure():
    layers, ks = (figures.colours(kind, [11, 0, 6]) for kind in ("layer", "k"))
    assert list(layers) == [0, 6, 11] and tuple(layers[0]) != tuple(ks[0])
    light = [sum(c[:3]) for c in layers.values()]
    assert light == sorted(light) and light[-1] < 2.2  # told apart when printed in grey, and never white on white
