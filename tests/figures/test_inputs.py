"""The figures of images, activations and training."""

import numpy as np
import pandas as pd
from written import written

from sae.figures import inputs

GEOMETRY = {"blocks": 6, "width": 192, "prefix": ["class"], "patches": [7, 5], "side": [28, 20], "outputs": 3}


def test_the_overview_counts_the_images_and_says_how_well_the_vit_knows_them():
    manifest = pd.DataFrame(
        {
            "id": range(6),
            "status": ["ok"] * 4 + ["broken", "duplicate"],
            "split": ["train"] * 3 + ["held_out"] + [None] * 2,
            "label": ["a", "b", "a", "b", None, None],
        }
    )
    model = {"geometry": GEOMETRY, "parameters": 2_800_000, "accuracy": {"label": 0.75}, "ids": [3]}
    pixels = np.zeros((4, 28, 20, 3), np.uint8)
    figure = inputs.overview(manifest, model, "tiny", pixels)
    names, bars = figure.axes[1].get_yticklabels(), figure.axes[1].patches
    counts = {name.get_text(): bar.get_width() for name, bar in zip(names, bars, strict=True)}
    assert counts == {"train": 3, "held out": 1, "broken": 1, "duplicate": 1}
    shown = written(figure)
    assert "6 image files, 2 classes" in shown and "75.0%" in shown and "7 × 5 + 1 (class) tokens" in shown
    assert "no labels that the ViT can predict" in written(
        inputs.overview(manifest, model | {"accuracy": {}}, "", pixels)
    )


def test_statistics_show_the_norms_of_each_token_type_and_the_warnings():
    histogram = np.zeros(50)
    histogram[[20, 21]] = 10, 30
    facts = {
        "norms": {name: {"histogram": histogram.tolist(), "median": 9.5} for name in ("class", "patch")},
        "variance": [1.0, 2.0, 5.0],
        "largest_dimensions": [{"dimension": 2, "share": 0.625}],
        "warnings": ["something is odd"],
        "rows": 1234,
        "tokens": "patches",
        "gamma": 0.5,
    }
    figure = inputs.statistics(facts, 4)
    shown = written(figure)
    assert "Dimension 2 alone has 62.5% of the variance" in shown and "patch tokens: median 9.5" in shown
    assert "Warning: something is odd" in shown and "1,234 train tokens" in shown
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [5 / 8, 7 / 8, 1])
    assert "No warnings" in written(inputs.statistics(facts | {"warnings": []}, 4))


def test_training_curves_say_where_they_end():
    log = pd.DataFrame({"tokens": [1, 2e6], "fvu": [1, 0.125], "l0": [4, 4], "dead": [0, 0.25], "lr": [0.1, 0.2]})
    shown = written(inputs.training(log, "title"))
    assert "FVU at the end: 0.125" in shown and "L0 at the end: 4" in shown and "Dead at the end: 25.0%" in shown
