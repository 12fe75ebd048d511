"""The conclusion: SAEs against baselines, in sentences and as a page."""

import numpy as np
import pandas as pd
import pytest
import small
from scipy import stats

from sae.evidence import choice, conclusion, summary
from sae.evidence.measures import MEASURES


def page_of(table, baselines, name="x"):
    compared = summary.compare(table, ["topk"], baselines)
    best = conclusion.against_best(compared)
    latents = small.latents({(1, 4, "topk"): [0.9, 0.1]})
    return conclusion.page(table, compared, choice.grid_points(table, latents, best, ["topk"], 100), name)


@pytest.mark.parametrize(("ours", "verdict"), [(0.3, "worse than"), (0.9, "better than")])
def test_the_page_says_whether_the_sae_beats_the_best_baseline(ours, verdict):
    table = small.summaries({"topk": ours, "pca": 0.5, "random": 0.2})
    page = page_of(table, ["pca", "random"], "<img src=x onerror=alert(1)>")
    assert f"{verdict} pca" in " ".join(page.split())  # the best baseline, not the weakest
    assert "random" not in page.split("Every number")[1].split("</tr>", 1)[1]  # beyond the heading of its column
    assert f"{ours:.3f}" in page and "0.500" in page and "0.200" in page
    assert "<img" not in page and "&lt;img" in page


def test_the_sentences_say_what_is_bought_or_that_it_is_nothing():
    for ours, words in ((0.3, "The SAE gains nothing"), (0.9, "By 1 of 1 measures, the SAE is better")):
        compared = summary.compare(
            small.summaries({"topk": ours, "pca": 0.5, "random": 0.2}), ["topk"], ["pca", "random"]
        )
        first, *lines = conclusion.sentences(conclusion.against_best(compared))
        assert first.startswith(words) and "at the one grid point" in first
        assert ("By 1, a baseline is better: concept recovery" in first) == (ours == 0.3)
        assert len(lines) == 1 and f"at {int(ours > 0.5)} of 1 grid points" in lines[0]
        assert f"an F1 of {ours:.2f}" in lines[0] and "The best baseline, pca: 0.50" in lines[0]


def test_what_does_not_depend_on_the_seed_does_not_count_as_stable():
    table = small.summaries({"topk": 0.5, "pca": 1.0, "random": 0.2}, measure="stability")
    best = conclusion.against_best(summary.compare(table, ["topk"], ["pca", "random"]))
    assert best["baseline"].tolist() == ["random"] and best["verdict"].tolist() == ["better"]


def test_features_come_first_and_reconstruction_last():
    parts = [small.summaries({"topk": 0.5, "pca": 0.4}, measure) for measure in ("fvu", "probe_1", "stability")]
    table = pd.concat([*parts, small.summaries({"topk": 0.5, "pca": 0.4})])
    compared = summary.compare(table, ["topk"], ["pca"])
    page = page_of(table, ["pca"])
    places = [page.rindex(f">{MEASURES[key].name}") for key in ("concept_recovery", "stability", "probe_1", "fvu")]
    assert places == sorted(places)
    lines = conclusion.sentences(conclusion.against_best(compared))
    assert len(lines) <= 5 and not any("FVU" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ((0.70, 0.72, 0.71), "better"),
        ((0.70, 0.72), "better"),  # two seeds show no spread
        ((0.99, 0.55, 0.56), "open"),  # by the images alone it would be better with each seed
        ((0.30, 0.28, 0.29), "worse"),
        ((0.05, 0.45, 0.44), "open"),
    ],
)
def test_a_verdict_needs_the_seeds_to_agree(ours, verdict):
    parts = [
        small.summaries({"topk": value, "pca": 0.5}).assign(
            seed=seed, draws=lambda t: t["value"].map(lambda v: [v] * 200)
        )
        for seed, value in enumerate(ours)
    ]
    table = pd.concat(parts, ignore_index=True)
    compared = summary.compare(table, ["topk"], ["pca"])
    assert compared["verdict"].tolist() == [verdict] * len(ours)
    assert (compared["seeds"] == len(ours)).all()
    np.testing.assert_allclose(compared["mean_gain"], np.mean(ours) - 0.5)
    page = page_of(table, ["pca"])
    if len(ours) < 3:
        assert compared["reliable"].isna().all() and "±" not in page.split("<h2>Layer", 1)[1]
    else:
        interval = stats.ttest_1samp(np.array(ours) - 0.5, 0).confidence_interval(0.95)
        np.testing.assert_allclose(compared["mean_gain"] + compared["reliable"], interval.high)
        assert f"±{np.std(ours, ddof=1):.3f}" in page and f"{len(ours)} seeds:" in page


def test_better_than_every_baseline_means_every_one():
    gains = {"a": (0.3, 0.2, 0.2), "b": (0.4, -0.25, 0.4)}
    parts = []
    for seed in range(3):
        values = {"topk": 0.5} | {name: 0.5 - gain[seed] for name, gain in gains.items()}
        fixed = small.summaries(values).assign(seed=seed)
        parts.append(fixed.assign(draws=fixed["value"].map(lambda value: [value] * 200)))
    compared = summary.compare(pd.concat(parts, ignore_index=True), ["topk"], ["a", "b"])
    assert (compared.loc[compared["baseline"] == "a", "verdict"] == "better").all()
    best = conclusion.against_best(compared)
    assert best["verdict"].tolist() == ["open"] * 3 and (best["baseline"] == "b").all()
    assert conclusion.sentences(best.iloc[:0]) == ["Nothing can be compared."]
