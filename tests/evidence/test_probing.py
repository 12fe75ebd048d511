"""Sparse probes: planted classes are found, chance is at chance, nothing held out is learned from."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from sae.evidence import probing
from sae.evidence.probing import measure, probe, probe_dense

N, LATENTS, D, CLASS_OF_3 = 240, 40, 6, 3
NAMES = np.array(["ant", "bee", "cow", "dog"], object)


@pytest.fixture(scope="module")
def planted():
    """Latents at random, but for number 3 + c, which fires on class c alone; one raw dimension tells `ant`."""
    rng = np.random.default_rng(0)
    number = rng.integers(0, 4, N)
    z = rng.random((N, LATENTS)) * (rng.random((N, LATENTS)) < 0.3)
    for c in range(4):
        z[:, CLASS_OF_3 + c] = (number == c) * rng.uniform(1, 2, N)
    dense = rng.standard_normal((N, D))
    dense[:, 0] += 8 * (number == 0)
    train = np.arange(N) < 160
    return sparse.csr_array(z.astype(np.float32)), {"animal": NAMES[number]}, train, dense


def rows(probes, name):
    return probes.table[probes.table["probe"] == name].set_index("class")


def test_one_planted_latent_tells_its_class(planted):
    found = rows(probe(*planted[:3]), "1")
    assert found["auroc"].tolist() == [1] * 4
    assert found["balanced_accuracy"].tolist() == [1] * 4
    assert found["f1"].tolist() == [1] * 4
    assert found["latents"].to_dict() == {name: [CLASS_OF_3 + c] for c, name in enumerate(NAMES)}


def test_larger_probes_keep_the_best_latents(planted):
    probes = probe(*planted[:3], sizes=(1, 3))
    for name in NAMES:
        one, three = rows(probes, "1").at[name, "latents"], rows(probes, "3").at[name, "latents"]
        assert len(set(three)) == 3 and three[:1] == one


def test_the_dense_probe_reads_the_raw_activations(planted):
    _, labels, train, dense = planted
    assert rows(probe_dense(dense, labels, train), "dense").at["ant", "auroc"] == 1
    noise = np.random.default_rng(1).standard_normal(dense.shape)
    assert rows(probe_dense(noise, labels, train), "dense")["auroc"].mean() == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("strengths", [(0.003, 1e4), (1e4, 0.003)])
def test_the_dense_probe_chooses_a_regularisation_that_generalises(planted, monkeypatch, strengths):
    _, labels, train, _ = planted
    rng = np.random.default_rng(2)
    wide = rng.standard_normal((N, 100))  # many weak hints: without regularisation the noise is fitted
    wide += 0.25 * rng.standard_normal((4, 100))[pd.factorize(labels["animal"], sort=True)[0]]

    def auroc(*offered):
        monkeypatch.setattr(probing, "STRENGTHS", offered)
        return rows(probe_dense(wide, labels, train), "dense")["auroc"].tolist()

    assert np.mean(auroc(0.003)) > np.mean(auroc(1e4)) + 0.02
    assert auroc(*strengths) == auroc(0.003)


def test_a_latent_that_is_silent_on_a_class_tells_it_too(planted):
    latents, labels, train, _ = planted
    z = latents.toarray()
    z[:, CLASS_OF_3] = labels["animal"] != "ant"
    found = rows(probe(sparse.csr_array(z), labels, train), "1").loc["ant"]
    assert found["latents"] == [CLASS_OF_3] and found["auroc"] == 1


def test_a_rare_class_counts_as_much_as_the_rest():
    rng = np.random.default_rng(9)
    rare = rng.random(2000) < 0.05
    z = sparse.csr_array(rng.uniform(0.1, 1, (2000, 1)) + 0.5 * rare[:, None])
    labels = {"kind": np.where(rare, "rare", "common")}
    train = np.arange(2000) < 1000
    for probes, name in (
        (probe(z, labels, train, sizes=(1,)), "1"),
        (probe_dense(z.toarray(), labels, train), "dense"),
    ):
        assert rows(probes, name).at["rare", "balanced_accuracy"] > 0.7


def test_shuffled_labels_give_chance(planted):
    tables = [probe(*planted[:3], seed=seed).table for seed in range(8)]
    shuffled = pd.concat(t[t["probe"] == "shuffled"] for t in tables)
    assert shuffled["auroc"].mean() == pytest.approx(0.5, abs=0.05)
    assert shuffled["balanced_accuracy"].mean() == pytest.approx(0.5, abs=0.05)
    assert shuffled["latents"].map(len).eq(5).all()


def test_noise_gives_chance_in_every_probe():
    rng = np.random.default_rng(3)
    z = sparse.random_array((600, 200), density=0.3, rng=rng, format="csr")
    labels = {"a": rng.integers(0, 4, 600), "b": rng.integers(0, 3, 600)}
    dense, train = rng.standard_normal((600, D)), np.arange(600) < 300
    table = pd.concat([probe(z, labels, train).table, probe_dense(dense, labels, train).table])
    means = table.groupby("probe")["auroc"].mean()
    assert set(means.index) == {"1", "2", "5", "shuffled", "dense"}
    assert means.to_numpy() == pytest.approx(0.5, abs=0.06)


def test_nothing_held_out_is_learned_from(planted):
    latents, labels, train, _ = planted
    changed = latents.toarray()
    changed[~train] = np.random.default_rng(4).random((int((~train).sum()), LATENTS))
    changed[train.size - 1] = latents.toarray()[train.size - 1]  # one held-out image stays as it was
    dense = planted[3]
    raw = np.where(train[:, None], dense, 0)
    raw[-1] = dense[-1]
    other = {"animal": np.where(train, labels["animal"], np.roll(labels["animal"], 7))}
    before, after = probe(*planted[:3]), probe(sparse.csr_array(changed), other, train)
    assert before.table["latents"].tolist() == after.table["latents"].tolist()
    np.testing.assert_allclose(before.scores[-1], after.scores[-1])  # so the fit is the same too
    before, after = probe_dense(dense, labels, train), probe_dense(raw, other, train)
    np.testing.assert_allclose(before.scores[-1], after.scores[-1])


def test_order_and_scale_of_the_latents_change_nothing_else(planted):
    latents, labels, train, _ = planted
    order = np.random.default_rng(5).permutation(LATENTS)
    scaled = latents[:, order] @ sparse.diags_array(np.float32(2) ** np.arange(LATENTS))
    before, after = probe(*planted[:3]), probe(scaled.tocsr(), labels, train)
    plain = before.table["probe"] != "shuffled"  # there latents are tied, and the first of them is taken
    np.testing.assert_allclose(before.scores[:, plain], after.scores[:, plain], atol=1e-3)
    chosen = [[int(order[i]) for i in few] for few in after.table.loc[plain, "latents"]]
    assert chosen == before.table.loc[plain, "latents"].tolist()


def test_order_of_the_images_within_a_split_changes_no_latent_probe(planted):
    latents, labels, train, _ = planted
    order = np.random.default_rng(6).permutation(N)
    after = probe(latents[order], {"animal": labels["animal"][order]}, train[order])
    for name in ("1", "5"):
        pd.testing.assert_frame_equal(rows(probe(*planted[:3]), name), rows(after, name))


def test_unknown_images_take_no_part(planted):
    latents, labels, train, _ = planted
    unknown = np.arange(N) % 5 == 0
    partly = np.where(unknown, None, labels["animal"])
    both = probe(latents, {"animal": partly, "other": labels["animal"]}, train)
    alone = probe(latents[~unknown], {"animal": partly[~unknown]}, train[~unknown])
    animal = both.table["attribute"] == "animal"
    for column in ("auroc", "f1", "support_train", "support_held_out", "latents"):
        plain = both.table["probe"].isin(["1", "2", "5"])
        of_known = alone.table.loc[alone.table["probe"].isin(["1", "2", "5"]), column]
        assert both.table.loc[animal & plain, column].tolist() == of_known.tolist()
    assert np.isnan(both.scores[:, animal]).all(1).tolist() == unknown[~train].tolist()
    assert not np.isnan(both.scores[:, ~animal]).any()


def test_rare_and_lone_classes_are_left_out(planted):
    latents, labels, train, _ = planted
    animals = labels["animal"].copy()
    animals[:6], animals[6:9], animals[-4:] = "eel", "fox", "fox"  # eels are in train alone, foxes too rare there
    table = probe(latents, {"animal": animals, "one": np.full(N, "x", object)}, train).table
    assert set(table["class"]) == set(NAMES) and set(table["attribute"]) == {"animal"}
    for name in NAMES:
        row = table[table["class"] == name].iloc[0]
        assert row["support_train"] == (animals[train] == name).sum()
        assert row["support_held_out"] == (animals[~train] == name).sum()


def test_only_the_most_common_classes_are_probed(planted, monkeypatch):
    monkeypatch.setattr(probing, "_MOST", 2)
    common = pd.Series(planted[1]["animal"]).value_counts().index[:2]
    assert set(probe(*planted[:3]).table["class"]) == set(common)


def test_no_class_gives_an_empty_table_of_the_same_columns(planted):
    latents, _, train, dense = planted
    probes = probe(latents, {"id": np.arange(N)}, train)
    assert probes.table.empty and list(probes.table) == list(probe(*planted[:3]).table)
    assert probes.scores.shape == probes.truth.shape == ((~train).sum(), 0)
    assert probe_dense(dense, {"id": np.arange(N)}, train).table.empty


def test_the_table_is_what_its_scores_give(planted):
    probes = probe(*planted[:3])
    columns = ["auroc", "balanced_accuracy", "f1"]
    pd.testing.assert_frame_equal(probes.table[columns], measure(probes.scores, probes.truth))
    assert probes.truth.shape == probes.scores.shape == ((~planted[2]).sum(), len(probes.table))


def test_measures_are_scikit_learns():
    rng = np.random.default_rng(7)
    scores, truth = rng.integers(-3, 4, (60, 5)).astype(float), rng.random((60, 5)) < 0.3  # with ties
    scores[rng.random((60, 5)) < 0.2] = np.nan
    found = measure(scores, truth)
    for i in range(5):
        known = ~np.isnan(scores[:, i])
        s, y = scores[known, i], truth[known, i]
        wanted = [roc_auc_score(y, s), balanced_accuracy_score(y, s > 0), f1_score(y, s > 0)]
        assert found.loc[i].tolist() == pytest.approx(wanted)
    assert measure(scores, np.zeros_like(truth)).isna().all(axis=None)


def test_weights_count_images_as_often_as_they_are_drawn():
    rng = np.random.default_rng(10)
    scores, truth = rng.integers(-3, 4, (60, 5)).astype(float), rng.random((60, 5)) < 0.3  # with ties
    scores[rng.random((60, 5)) < 0.2] = np.nan
    weights = rng.multinomial(60, np.full(60, 1 / 60), 7)
    found = probing.auroc(scores, truth, weights)
    for row, counts in zip(found, weights, strict=True):
        drawn = np.repeat(np.arange(60), counts)
        np.testing.assert_allclose(row, measure(scores[drawn], truth[drawn])["auroc"])


@pytest.mark.parametrize("inputs", [1, 2, 5])
def test_a_logistic_regression_is_scikit_learns(inputs):
    rng = np.random.default_rng(inputs)
    x = rng.standard_normal((6, inputs, 300))
    x[2] *= rng.random((inputs, 300)) < 0.05  # mostly silent
    x[3, 0] = 0  # a latent that is silent on all train images
    y = rng.random((6, 300)) < 1 / (1 + np.exp(2 - 3 * x[:, 0]))
    y[4] = x[4, 0] > 1  # separable
    y[5] = np.arange(300) < 2  # rare
    beta = probing.logistic(x, y)
    for one, target, found in zip(x, y, beta, strict=True):
        model = LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=10_000).fit(one.T, target)
        wanted = model.decision_function(one.T)
        scores = found[:-1] @ one + found[-1]
        np.testing.assert_allclose(scores, wanted, atol=1e-4)
        assert roc_auc_score(target, scores) == pytest.approx(roc_auc_score(target, wanted), abs=1e-4)


def test_the_auroc_of_every_latent_is_scikit_learns():
    rng = np.random.default_rng(8)
    z = rng.integers(0, 4, (50, 12)) * (rng.random((50, 12)) < 0.6)  # many silent, many equal
    z[:, 0], z[:, 1] = 0, 2
    y = rng.random((50, 3)) < 0.4
    found = probing.latent_auroc(probing.latent_ranks(sparse.csc_array(z)), y)
    wanted = [[roc_auc_score(y[:, c], z[:, i]) for i in range(12)] for c in range(3)]
    np.testing.assert_allclose(found, wanted)
    assert (found[:, :2] == 0.5).all()
