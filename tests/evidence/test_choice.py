"""The choice of a grid point: the order, the reasons, and dictionaries that are too large for their data."""

import numpy as np
import pandas as pd
import pytest
import small

from sae.evidence import conclusion, summary
from sae.evidence.choice import grid_points


def chosen(values, latents=None, baselines=None, images=100):
    """Ranks grid points from (layer, k, method) -> measure -> value; baselines: measure -> value, at all points."""
    parts = [
        small.summaries({method: value} | {b: v[key] for b, v in (baselines or {}).items() if key in v}, key, layer, k)
        for (layer, k, method), measures in values.items()
        for key, value in measures.items()
    ]
    table, methods = pd.concat(parts, ignore_index=True), sorted({method for _layer, _k, method in values})
    best = conclusion.against_best(summary.compare(table, methods, [*(baselines or {})]))
    if latents is None:
        latents = small.latents({point: [0.9, 0.8] for point in values})
    return grid_points(table, latents, best, methods, images)


GRID = {
    (2, 8, "topk"): {"concept_recovery": 0.4, "class_selectivity": 0.7, "stability": 0.3, "fvu": 0.01},
    (4, 8, "topk"): {"concept_recovery": 0.6, "class_selectivity": 0.5, "stability": 0.5, "fvu": 0.2},
    (4, 16, "relu"): {"concept_recovery": 0.5, "class_selectivity": 0.4, "stability": 0.4, "fvu": 0.1},
}


def test_the_order_is_that_of_the_mean_place_by_what_features_are_for():
    table = chosen(GRID)
    assert [*table[["layer", "k", "method"]].itertuples(index=False, name=None)] == [
        (4, 8, "topk"),
        (2, 8, "topk"),
        (4, 16, "relu"),
    ]
    np.testing.assert_allclose(table["mean_rank"], [4 / 3, 7 / 3, 7 / 3])
    assert "fvu" not in table  # the best by it is not the best for features
    assert table.loc[0, "reasons"] == "best of 3 by concept recovery (F1) and stability"
    assert "last of 3 by concept recovery (F1) and stability" in table.loc[1, "reasons"]
    assert "best of 3 by class selectivity (MCC)" in table.loc[1, "reasons"]
    assert table["first"].sum() == pytest.approx(1) and table.loc[0, "first"] > 0.9


def test_an_sae_without_another_seed_is_not_called_unstable():
    point = (2, 8, "imported")
    latents = small.latents({point: [0.1]}, partner_correlations=[np.empty(0)])
    row = chosen({point: {"concept_recovery": 0.5}}, latents).iloc[0]
    assert np.isnan(row["lost"]) and not row["too_large"]


def test_points_that_the_images_cannot_tell_apart_share_the_first_place():
    table = chosen({(layer, 8, "topk"): {"concept_recovery": 0.5 + 1e-4 * layer} for layer in range(4)})
    assert table["layer"].tolist() == [3, 2, 1, 0]
    # Draws of the same images are the same for all points here, so the better point is the better in each draw.
    assert table["first"].tolist() == [1, 0, 0, 0]
    other = pd.concat([small.summaries({"topk": 0.5}, layer=layer) for layer in range(2)], ignore_index=True)
    rng = np.random.default_rng(3)
    other["draws"] = [0.5 + 0.1 * rng.standard_normal(200) for _ in range(2)]
    best = conclusion.against_best(summary.compare(other, ["topk"], []))
    table = grid_points(other, small.latents({(0, 4, "topk"): [1], (1, 4, "topk"): [1]}), best, ["topk"], 100)
    assert table["first"].between(0.3, 0.7).all()


def test_without_classes_and_seeds_reconstruction_decides():
    latents = small.latents({(1, 4, "topk"): [0], (2, 4, "topk"): [0]}, top_mcc=np.nan, confirmed=None)
    latents["partner_correlations"] = None
    table = chosen({(1, 4, "topk"): {"fvu": 0.3}, (2, 4, "topk"): {"fvu": 0.1}}, latents)
    assert table["layer"].tolist() == [2, 1]
    assert table[["lost", "confirmed"]].isna().all(axis=None) and not table["too_large"].any()


def test_a_measure_that_a_point_lacks_decides_nothing():
    grid = {point: dict(values) for point, values in GRID.items()}
    del grid[4, 8, "topk"]["stability"]
    assert "stability" not in chosen(grid)


def test_a_baseline_that_is_better_is_named_as_a_reason():
    table = chosen(GRID, baselines={"kmeans": {"stability": 0.9, "concept_recovery": 0.1}}).set_index("layer")
    assert all(text.endswith("a baseline is better by stability") for text in table["reasons"])


@pytest.mark.parametrize(
    ("correlations", "frequency", "words"),
    [
        ([0.1, 0.2, 0.29, 0.9], 0.5, "too large for its data: no other seed finds 75% of its latents;"),
        ([0.9, 0.9, 0.9, 0.9], 0.05, "too large for its data: 100% fire on fewer than 10 images;"),
        ([0.1, 0.2, 0.31, 0.9], 0.5, ""),
        ([0.9, 0.9, 0.9, 0.9], 0.1, ""),
    ],
)
def test_a_dictionary_is_too_large_where_most_latents_are_lost_or_rare(correlations, frequency, words):
    point = (1, 4, "topk")
    dead = small.latents({point: [0]}, status="dead", image_frequency=0.0)  # they are counted apart
    alive = small.latents({point: correlations}, image_frequency=frequency)
    (row,) = chosen({point: {"stability": 0.5}}, pd.concat([alive, dead, dead])).to_dict("records")
    assert row["too_large"] == bool(words) and words in row["reasons"]
    assert row["dead"] == pytest.approx(1 / 3) and row["confirmed"] == 1
    assert "of 1" not in row["reasons"]


def test_one_other_seed_that_has_a_latent_is_enough():
    latents = small.latents({(1, 4, "topk"): [0, 0]})
    latents["partner_correlations"] = [[0.05, 0.99, 0.05], [0.05, 0.29, 0.1]]
    (row,) = chosen({(1, 4, "topk"): {"stability": 0.3}}, latents).to_dict("records")
    assert row["lost"] == 0.5 and not row["too_large"]


def test_shares_are_of_all_alive_latents():
    latents = small.latents(
        {(1, 4, "topk"): [0.9] * 4}, confirmed=[True, None, None, False], top_mcc=[1, None, None, 0]
    )
    (row,) = chosen({(1, 4, "topk"): {"stability": 0.3}}, latents).to_dict("records")
    assert row["confirmed"] == 0.25


def test_a_grid_point_without_a_living_latent_is_told_apart():
    points = {(1, 4, "topk"): {"fvu": 1.0}, (2, 4, "topk"): {"fvu": 0.1}}
    latents = pd.concat(
        [small.latents({(1, 4, "topk"): [0]}, status="dead", image_frequency=0.0), small.latents({(2, 4, "topk"): [1]})]
    )
    table = chosen(points, latents).set_index("layer")
    assert table.loc[1, "dead"] == 1 and table.loc[2, "dead"] == 0
    assert table.loc[1, "reasons"] == "last of 2 by unexplained variance (FVU); all of its latents are dead"
    assert table["too_large"].tolist() == [False, False] and np.isnan(table.loc[1, "lost"])
