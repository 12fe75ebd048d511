"""The figures of matched latents."""

import numpy as np
import pandas as pd
from written import written

from sae.figures import matching

NA = pd.NA


def test_stability_says_the_medians_of_the_latents_and_of_chance():
    table = pd.DataFrame({"stability_cosine": [0.5, 0.7, 0.9, 0], "stability_correlation": [0.1, 0.2, 0.3, np.nan]})
    table["partner_seeds"] = [[1]] * 4
    shown = written(matching.stability(table, {"random directions": np.full(20, 0.25)}, "Layer 3"))
    assert "3 of 4 latents fire" in shown and "Layer 3" in shown
    assert "these latents: median 0.70" in shown and "control, random directions: median 0.25" in shown
    silent = written(matching.stability(table[3:], {"random tokens": np.full(20, 0.25)}, "Layer 3"))
    assert "0 of 1 latents" in silent and "these latents" not in silent
    alone = table.assign(partner_seeds=[[]] * 4, stability_correlation=np.nan)
    assert "imported, without another seed" in written(matching.stability(alone, {"random": np.ones(3)}, "Layer 3"))


def test_across_ks_has_a_bar_per_pair_and_all_shares():
    tables = {
        "k 16 → 32": pd.DataFrame({"outcome": ["same", "split", "split", "merged", "lost"]}),
        "k 32 → 64": pd.DataFrame({"outcome": ["same", "same", "same", "dead"]}),
    }
    figure = matching.across_ks(tables, "At all k")
    widths = np.array([[bar.get_width() for bar in bars] for bars in figure.axes[0].containers])
    np.testing.assert_allclose(widths.T, [[0.2, 0.4, 0, 0.2, 0.2, 0], [0.75, 0, 0, 0, 0, 0.25]])
    ends = np.array([[bar.get_x() + bar.get_width() for bar in bars] for bars in figure.axes[0].containers])
    np.testing.assert_allclose(ends, np.cumsum(widths, 0))
    shown = written(figure)
    assert "k 16 → 32\n5 latents" in shown and "40%" in shown and "merged" in shown and "dead" in shown


def test_across_layers_shows_shares_and_lengths_beside_chance():
    # Of two layers: latents 0 and 1 of the first go on as 0 and 1 of the second, one is new there; one never fires.
    matches = pd.DataFrame(
        {
            "position": [0] * 4 + [1] * 4,
            "fires": [True] * 4 + [True] * 3 + [False],
            "appears": pd.array([NA] * 4 + [False, False, True, False], "boolean"),
            "persists": pd.array([True, True, False, False] + [NA] * 4, "boolean"),
            "ends": pd.array([False, False, True, True] + [NA] * 4, "boolean"),
            "start": pd.array([0, 0, 0, 0, 0, 0, 1, NA], "Int64"),
            "length": [2, 2, 1, 1, 2, 2, 1, 0],
        }
    )
    control = matches.assign(length=np.where(matches["fires"], 1, 0), start=matches["position"].where(matches["fires"]))
    figure = matching.across_layers(matches, control, [3, 6], "Followed")
    left, right = figure.axes
    assert [bar.get_height() for bar in right.containers[0]] == [3, 2]
    assert [line[0][1] for line in right.collections[0].get_segments()] == [7, 0]
    shares = {bars.get_label().split(":")[0]: [bar.get_height() for bar in bars] for bars in left.containers}
    np.testing.assert_allclose(shares["new"], [np.nan, 1 / 3])
    np.testing.assert_allclose(shares["continues"], [0.5, np.nan])
    np.testing.assert_allclose(shares["ends"], [0.5, np.nan])
    shown = written(figure)
    assert "layer 6\n3 fire" in shown and "33%" in shown and "control: images shuffled" in shown
