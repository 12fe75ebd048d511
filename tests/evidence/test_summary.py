"""The measures of the conclusion: known values, chance, intervals, and a verdict that can be `nothing`."""

import numpy as np
import pandas as pd
import pytest
import small
from scipy import sparse
from sklearn.metrics import f1_score, matthews_corrcoef

from sae.evidence import classes, summary
from sae.evidence.fidelity import fvu
from sae.evidence.probing import Probes, measure


@pytest.fixture
def w():
    return summary.weights(80, 150)


def test_draws_are_of_images_and_the_same_for_every_dictionary(w):
    assert (w.sum(1) == 80).all() and (w >= 0).all() and w.var() == pytest.approx(1, abs=0.1)
    np.testing.assert_array_equal(w, summary.weights(80, 150))


def test_fidelity_is_fvu_and_predicting_the_mean_gives_one(w):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 5, 6)) + 10
    guess = x + 0.3 * rng.standard_normal(x.shape)
    spread = np.square(x - x.mean((0, 1))).sum((1, 2))

    def fidelity(guess):
        return summary.fidelity(np.square(x - guess).sum((1, 2)), spread, w)

    value, draws, n = fidelity(guess)
    assert value == pytest.approx(fvu(x.reshape(-1, 6), guess.reshape(-1, 6))) and n == 80
    assert np.quantile(draws, 0.1) < value < np.quantile(draws, 0.9)
    assert fidelity(np.broadcast_to(x.mean((0, 1)), x.shape))[0] == pytest.approx(1)
    drawn = np.repeat(np.arange(80), w[0].astype(int))
    assert draws[0] == pytest.approx(np.square(x - guess).sum((1, 2))[drawn].sum() / spread[drawn].sum())


def test_probes_are_measured_on_drawn_images(w):
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 5, (80, 3)).astype(float), rng.random((80, 3)) < 0.3
    facts = pd.DataFrame({"probe": ["1", "5", "1"]})
    probes = Probes(pd.concat([facts, measure(scores, truth)], axis=1), scores, truth)
    value, draws, n = summary.probed(probes, 1, w)
    auroc = lambda images: measure(scores[images], truth[images])["auroc"][[0, 2]].mean()  # noqa: E731
    assert value == pytest.approx(auroc(np.arange(80))) and n == 2
    for row, draw in zip(w[:5].astype(int), draws, strict=False):
        assert draw == pytest.approx(auroc(np.repeat(np.arange(80), row)))


def test_recovery_and_selectivity_are_means_of_f1_and_mcc(w):
    rng = np.random.default_rng(0)
    label = pd.Categorical(rng.choice(list("abc"), 80))
    tint = pd.Categorical(np.where(rng.random(80) < 0.5, None, rng.choice(["x", "y"], 80)))
    a = rng.random((80, 6)) * (rng.random((80, 6)) < 0.5)
    a[:, 0] = np.where(label == "a", 1 + rng.random(80), a[:, 0])
    pairs = pd.DataFrame({"latent": [0, 1, 2], "attribute": ["label", "label", "tint"], "class": ["a", "b", "x"]})
    pairs["threshold"] = [0.9, 0.2, 0.5]
    answer, true, known = summary.answers(sparse.csr_array(a), pairs, {"label": label, "tint": tint})
    assert known[:, 2].sum() == (tint.codes >= 0).sum() and not answer[~known].any()
    scores = [(true[known[:, i], i], answer[known[:, i], i]) for i in range(3)]
    found = summary.recovery(answer, true, w)
    value, draws, n = found["concept_recovery"]
    assert found["class_coverage"][0] == np.mean([f1_score(*score) >= 0.5 for score in scores])
    assert value == pytest.approx(np.mean([f1_score(*score) for score in scores])) and n == 3
    assert draws.std() > 0
    value, _draws, n = summary.selectivity(answer, true, known, w, alive=5)
    assert value == pytest.approx(sum(matthews_corrcoef(*score) for score in scores) / 5) and n == 5


def test_pointing_is_a_share_of_the_images_that_count(w):
    rng = np.random.default_rng(0)
    hit, seen = rng.random((80, 3)) < [0.9, 0.2, 0.5], rng.random((80, 3)) < 0.5
    seen[:, 2] = False
    value, draws, n = summary.pointing(hit, seen, w)
    assert value == pytest.approx((hit[seen[:, 0], 0].mean() + hit[seen[:, 1], 1].mean()) / 2) and n == 2
    assert abs(draws.mean() - value) < 0.05 and draws.std() > 0.01


def test_selectivity_by_shuffled_labels_is_at_chance(w):
    rng = np.random.default_rng(0)
    a = sparse.csr_array((rng.random((400, 60)) * (rng.random((400, 60)) < 0.3)).astype(np.float32))
    train, values = np.arange(400) < 320, []
    for _ in range(8):
        label = pd.Categorical(rng.choice(list("abcde"), 400))
        best = classes.ranked(classes.pairs(a, {"label": label}, train), 1)
        answers = summary.answers(a[~train], best, {"label": label[~train]})
        values.append(summary.selectivity(*answers, w, 60)[0])
    assert abs(np.mean(values)) < 0.02


def test_stability_of_a_copy_is_one_whatever_its_numbering_and_of_noise_zero(w):
    rng = np.random.default_rng(0)
    z = rng.random((80, 10, 12)) * (rng.random((80, 10, 12)) < 0.2)
    z[..., 7] = 0
    order = rng.permutation(12)
    value, draws, n = summary.stability(small.coded(z), small.coded(3 * z[..., order]), np.argsort(order), w)
    assert value == pytest.approx(1) and n == 11 and draws.min() > 0.999
    noise = rng.permuted(z.reshape(800, 12), axis=0).reshape(z.shape)
    assert abs(summary.stability(small.coded(z), small.coded(noise), np.arange(12), w)[0]) < 0.05
    silent = small.coded(np.zeros_like(z))
    assert summary.stability(small.coded(z), silent, np.arange(12), w)[0] == 0
    dense = np.corrcoef(z[..., 3].ravel(), z[..., 4].ravel())[0, 1]
    only = summary.stability(small.coded(z[..., [3]]), small.coded(z[..., [4]]), np.array([0]), w)
    assert only[0] == pytest.approx(dense, abs=1e-5)


@pytest.mark.parametrize(
    ("measure", "ours", "theirs", "verdict"),
    [
        ("concept_recovery", 0.6, 0.4, "better"),
        ("concept_recovery", 0.4, 0.6, "worse"),
        ("concept_recovery", 0.5, 0.5, "open"),
        ("fvu", 0.4, 0.6, "better"),  # the lower the better
        ("fvu", 0.6, 0.4, "worse"),
    ],
)
def test_the_verdict_follows_the_interval_of_the_difference(measure, ours, theirs, verdict):
    compared = summary.compare(small.summaries({"topk": ours, "pca": theirs}, measure=measure), ["topk"], ["pca"])
    assert compared["verdict"].tolist() == [verdict]
    assert (compared["low"] < compared["gain"]).all() and (compared["gain"] < compared["high"]).all()
    assert np.sign(compared["gain"].iloc[0]) == {"better": 1, "worse": -1, "open": 0}[verdict]


def test_differences_are_judged_draw_by_draw():
    rng = np.random.default_rng(0)
    common = rng.standard_normal(200)  # images that are easy or hard for both
    parts = [
        summary.table({"probe_1": (value, value + common, 9)}).assign(layer=1, k=4, seed=0, method=method)
        for method, value in (("topk", 0.51), ("pca", 0.5))
    ]
    assert summary.compare(pd.concat(parts), ["topk"], ["pca"])["verdict"].tolist() == ["better"]


def test_interventions_count_latents_above_their_controls_and_mean_agreement():
    table = pd.DataFrame(
        {"size": [2.0, 1, 0, 3], "size_control": [1.0, 2, 0, np.nan], "agreement": [1, 0.5, np.nan, 0]}
    )
    found = summary.interventions(table)
    assert found["causal_size"][0] == 0.5 and found["causal_size"][2] == 2  # neither where nothing moves nor unknown
    assert found["causal_agreement"][0] == 0.5 and found["causal_agreement"][2] == 3
    assert summary.interventions(table.iloc[:0]) == {}


def test_an_interval_holds_its_value_also_where_the_draws_are_biased():
    draws = 0.3 + 0.02 * np.random.default_rng(0).standard_normal(200)
    row = summary.table({"stability": (0.4, draws, 9)}).iloc[0]
    assert row["low"] < 0.4 < row["high"] and np.mean(row["draws"]) == pytest.approx(0.4)
    assert row["high"] - row["low"] == pytest.approx(np.ptp(np.quantile(draws, [0.025, 0.975])))


def test_a_measure_that_no_image_gives_is_left_out():
    draws = np.append(np.linspace(0.1, 0.3, summary.DRAWS - 1), np.nan)
    table = summary.table({"fvu": (0.2, draws, 5), "stability": (np.nan, np.full(summary.DRAWS, np.nan), 0)})
    assert table["measure"].tolist() == ["fvu"] and 0.1 < table["low"][0] < 0.2 < table["high"][0] < 0.3
    assert np.isfinite(table["draws"][0]).all()
