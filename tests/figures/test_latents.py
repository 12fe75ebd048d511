"""The figures of one dictionary's latents."""

import numpy as np
import pandas as pd
import pytest
from written import written

from sae.figures import latents as figures
from sae.figures import style

SHOWN = ["latent", "panel", "rank", "image_id", "activation", "token_row", "token_col", "split"]


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
            "token_type": ["position" if i == 7 else "" for i in range(n)],
        }
    )
    table.loc[table["status"] == "dead", ["frequency", "frequency_held_out"]] = 0
    return table


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
    everything = {latent for part in figures.choose_latents(table, 100).values() for latent in part}
    assert set(table.loc[table["status"] == "alive", "latent"]) - everything == {7}  # it follows a position


def test_a_sheet_shows_the_images_with_box_and_heat(tmp_path):
    table = latents()
    groups = figures.choose_latents(table, 4)
    shown = [latent for chosen in groups.values() for latent in chosen]
    panels = [("top", 1, 1), ("top", 2, 2), ("q50", 1, 2), ("silent", 1, 3), ("silent", 3, 3), ("top", 3, 1)]
    images = pd.DataFrame(
        [
            (n, panel, rank, image, 0.0 if panel == "silent" else 9.0 - rank, 1, 2, "held_out")
            for n in range(30)
            for panel, rank, image in panels
        ],
        columns=SHOWN,
    )
    images = figures.shown(images, shown, 2)
    assert len(images) == 4 * len(shown)  # no third of the strongest, no third silent one
    manifest = pd.DataFrame({"id": [1, 2, 3], "label": ["a/<b> US$ 5 to US$ {9", "n02123045", None]})
    pictures = {i: np.full((32, 48, 3), 200, np.uint8) for i in (1, 2, 3)}
    heat = {(n, i): np.eye(2, 3) for n in shown for i in (1, 2)}
    figure = figures.sheet(groups, table, images, manifest, pictures, heat, "title")
    assert all(f"latent {n}" in written(figure) for n in shown)
    axes = figure.axes[0]
    assert len(axes.images) == 16 and len(axes.patches) == 12  # no box where the latent is silent
    x, right, bottom, top = axes.images[0].get_extent()
    assert (right - x) / (bottom - top) == pytest.approx(48 / 32)
    box, patch = axes.patches[0], (right - x) / 3  # of 2 x 3 patches, the one in row 1, column 2
    assert box.get_xy() == pytest.approx((x + 2 * patch, top + patch))
    assert (box.get_width(), box.get_height()) == pytest.approx((patch, patch))
    drawn = np.asarray(axes.images[0].get_array())
    assert drawn[:16, :16].mean() > 2 * drawn[:16, 16:32].mean()  # bright where the latent fires
    assert np.asarray(axes.images[3].get_array()).max() < 100  # the silent image is dark
    assert "8.0* <b> US" in written(figure) and "7.0* tabby" in written(figure) and "silent images" in written(figure)
    assert "precision 50%, recall 25%" in written(figure)
    assert "no class" in written(figure)
    style.save(figure, tmp_path / "sheet.svg")
    assert "&lt;b&gt; US$ 5 to US$" in (tmp_path / "sheet.svg").read_text()


def test_large_pictures_are_kept_no_larger_than_they_are_seen():
    images = pd.DataFrame([(1, "top", 1, 1, 2.0, 1, 2, "train")], columns=SHOWN)
    picture = np.zeros((320, 480, 3), np.uint8)
    picture[:, 240:] = 200
    manifest, heat = pd.DataFrame({"id": [1], "label": ["a"]}), {(1, 1): np.ones((2, 3))}
    drawn = figures.sheet({"Picked": [1]}, latents(), images, manifest, {1: picture}, heat, "title").axes[0].images[0]
    pixels = np.asarray(drawn.get_array())
    assert pixels.shape == (87, 130, 3) and pixels[:, :64].max() == 0 and pixels[:, 66:].min() == 200


def test_nothing_to_show_is_said():
    table = latents(3)
    table["status"] = "dead"
    figure = figures.sheet(figures.choose_latents(table, 4), table, pd.DataFrame(), pd.DataFrame(), {}, {}, "t")
    assert "No latent fires" in written(figure)
    groups = figures.choose_latents(latents(classes=False), 4)
    assert "No class to show" in written(figures.class_bars(groups, latents(classes=False), pd.DataFrame(), "t"))
    figures.density(table.assign(frequency_held_out=0.0), "t")


def test_class_bars_show_the_best_classes_on_both_splits():
    table = latents()
    table.loc[table["latent"] == 1, ["top_attribute", "top_class"]] = "colour", "red"
    rows = [
        ("colour", name, rank, 3.0 - rank, value, 90, 10, rank == 1)
        for rank, (name, value) in enumerate([("red", 1.75), ("blue", 0.5), ("green", np.nan)], 1)
    ]
    columns = ["attribute", "name", "rank", "score", "score_held_out", "support", "support_held_out", "confirmed"]
    classes = pd.DataFrame([*rows, ("shape", "ring", 1, 9.0, 9.0, 90, 10, True)], columns=columns).assign(latent=1)
    figure = figures.class_bars({"Picked": [1]}, table, classes, "title", most=2)
    train, held_out = figure.axes[0].containers
    assert [bar.get_width() for bar in train] == [2, 1] and [bar.get_width() for bar in held_out] == [1.75, 0.5]
    shown = written(figure)
    assert "latent 1: colour" in shown and "red ✓ (90+10)" in shown and "blue (90+10)" in shown


def test_density_counts_the_latents_that_fire_and_the_dense():
    shown = written(figures.density(latents().assign(frequency_held_out=[0.5] * 6 + [0.01] * 18 + [0] * 6), "title"))
    assert "24 of 30 latents fire" in shown and "dense:\n20.0%" in shown
