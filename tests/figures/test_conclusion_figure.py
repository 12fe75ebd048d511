"""The figure of the conclusion."""

import pandas as pd

from sae.figures.conclusion import conclusion


def test_a_panel_per_measure_shows_the_sae_with_its_interval_beside_the_baselines():
    rows = [
        (measure, layer, 4, method, seed, value + seed / 10, value - 0.1, value + 0.3)
        for measure in ("probe_1", "fvu", "stability")
        for layer in (1, 2)
        for method, value in (("topk", 0.6), ("pca", 0.5))
        for seed in (0, 1)
    ]
    table = pd.DataFrame(rows, columns=["measure", "layer", "k", "method", "seed", "value", "low", "high"])
    figure = conclusion(table, ["topk"], "title")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[2].endswith("(FVU): lower is better") and titles[1].endswith("(AUROC): higher is better")
    assert figure.axes[2].get_yscale() == "log" and len(titles) == 4 and not titles[3]
    (bars,) = figure.axes[1].containers
    assert bars.get_label() == "SAE (topk)"
    low, high = bars.lines[2][0].get_segments()[0][:, 1]
    assert abs(low - 0.5) < 1e-9 and abs(high - 0.9) < 1e-9
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pca", "SAE (topk)"]
