"""The classes of latents: against plain computations, planted classes, and chance."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn import metrics as sklearn

from sae.evidence import classes


@pytest.fixture
def planted():
    """300 images of 6 classes, an attribute half unknown, and 40 latents: latent c < 6 fires on class c above all."""
    rng = np.random.default_rng(0)
    label = rng.integers(6, size=300)
    tint = np.where(rng.random(300) < 0.5, None, np.where(rng.random(300) < 0.5, "warm", "cold"))
    a = rng.exponential(1, (300, 40)) * (rng.random((300, 40)) < 0.15)
    for c in range(6):
        a[:, c] = np.where(label == c, rng.uniform(1, 3, 300), a[:, c] * (rng.random(300) < 0.2))
    a = np.round(a, 1)  # ties
    a[:, 39] = 0  # dead
    groups = {"label": pd.Categorical([f"class {c}" for c in label]), "tint": pd.Categorical(tint)}
    return sparse.csr_array(a.astype(np.float32)), groups, rng.random(300) < 0.6


def test_every_column_is_what_a_plain_computation_gives(planted):
    a, groups, train = planted
    table = classes.pairs(a, groups, train, support=3)
    dense = a.toarray()
    for row in table.sample(60, random_state=0).itertuples():
        values = groups[row.attribute]
        for split, end in ((train, ""), (~train, "_held_out")):
            known = split & (values.codes >= 0)
            x, y = dense[known, row.latent], np.asarray(values[known]) == row._3
            guess = x >= row.threshold
            get = lambda name: getattr(row, name + end)  # noqa: E731, B023
            assert get("support") == y.sum()
            assert get("score") == pytest.approx(x[y].mean())
            assert get("auroc") == pytest.approx(sklearn.roc_auc_score(y, x))
            assert get("precision") == pytest.approx(sklearn.precision_score(y, guess, zero_division=0))
            assert get("recall") == pytest.approx(sklearn.recall_score(y, guess))
            assert get("f1") == pytest.approx(sklearn.f1_score(y, guess, zero_division=0))
            assert get("mcc") == pytest.approx(sklearn.matthews_corrcoef(y, guess), abs=1e-9)
            if (x > 0).any():
                assert get("lift") == pytest.approx(y[x > 0].mean() / y.mean())
            if not end:
                best = max(sklearn.f1_score(y, x >= cut) for cut in np.unique(x[x > 0]))
                assert row.f1 == pytest.approx(best)
            else:
                both = [[(guess & y).sum(), (guess & ~y).sum()], [(~guess & y).sum(), (~guess & ~y).sum()]]
                assert row.p_held_out == pytest.approx(stats.fisher_exact(both, "greater").pvalue)


def test_a_planted_class_is_confirmed_and_a_latent_without_one_says_so(planted):
    a, groups, train = planted
    latents = pd.DataFrame({"latent": np.arange(40)})
    top = classes.named(latents, classes.ranked(classes.pairs(a, groups, train), 3)).set_index("latent")
    assert top.loc[:5, "confirmed"].all()
    assert list(top.loc[:5, "top_class"]) == [f"class {c}" for c in range(6)]
    assert (top.loc[:5, "top_q"] < 1e-6).all()
    assert not top.loc[6:, "confirmed"].any()
    assert top.loc[6:, "top_class"].isna().all()


def test_labels_by_chance_confirm_next_to_nothing(planted):
    a, _groups, train = planted
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        chance = {"label": pd.Categorical(rng.choice(list("abcdefgh"), 300))}
        table = classes.pairs(a, chance, train)
        assert abs(table["auroc_held_out"].mean() - 0.5) < 0.03
        found += table["confirmed"].any()
    assert found <= 4  # one family in twenty is allowed a false discovery


def test_false_discoveries_are_counted_over_all_pairs_fired_or_not(planted):
    a, groups, train = planted
    alone = classes.pairs(a, groups, train)
    # A thousand more latents that never fire are a thousand times 8 more chances to be wrong.
    wide = sparse.hstack([a, sparse.csr_array((300, 1000), dtype=np.float32)], format="csr")
    more = classes.pairs(wide, groups, train)
    pd.testing.assert_series_equal(alone["p_held_out"], more["p_held_out"])
    strong = alone["p_held_out"] < 1e-3
    assert (more.loc[strong, "q"] > 5 * alone.loc[strong, "q"]).all()
    by_hand = np.append(alone["p_held_out"], np.ones(40 * 8 - len(alone)))
    np.testing.assert_allclose(alone["q"], stats.false_discovery_control(by_hand)[: len(alone)])


def test_held_out_images_choose_nothing(planted):
    a, groups, train = planted
    dense = a.toarray()
    changed = dense.copy()
    changed[~train] = np.random.default_rng(5).permuted(dense[~train], axis=0)
    ours, theirs = (classes.pairs(sparse.csr_array(x), groups, train) for x in (dense, changed))
    chosen = ["latent", "attribute", "class", "threshold", "f1", "mcc", "auroc"]
    pd.testing.assert_frame_equal(ours[chosen], theirs[chosen])


def test_scale_and_the_order_of_latents_and_images_do_not_matter(planted):
    a, groups, train = planted
    rng = np.random.default_rng(2)
    latents, images = rng.permutation(40), rng.permutation(300)
    moved = sparse.csr_array(a.toarray()[images][:, latents] * 4)
    theirs = classes.pairs(moved, {name: v[images] for name, v in groups.items()}, train[images])
    theirs["latent"] = latents[theirs["latent"]]
    keys = ["latent", "attribute", "class"]
    theirs = theirs.sort_values(keys, ignore_index=True)
    theirs[["threshold", "score", "score_held_out"]] /= 4
    ours = classes.pairs(a, groups, train).sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(ours, theirs)


def test_classes_with_little_support_are_not_tested(planted):
    a, groups, train = planted
    rare = np.asarray(groups["label"], object).copy()
    rare[np.flatnonzero(train)[:40]], rare[np.flatnonzero(~train)[:3]] = "rare", "rare"
    table = classes.pairs(a, {"label": pd.Categorical(rare)}, train, support=5)
    assert table.loc[table["class"] == "rare", "q"].isna().all()
    assert table.loc[table["class"] != "rare", "q"].notna().all()
    assert not table.loc[table["class"] == "rare", "confirmed"].any()


def test_images_without_any_class_give_empty_tables(planted):
    a, _groups, train = planted
    table = classes.pairs(a, {}, train)
    assert len(table) == 0
    assert len(classes.ranked(table, 3)) == 0
    top = classes.named(pd.DataFrame({"latent": np.arange(40)}), classes.ranked(table, 3))
    assert not top["confirmed"].any()
    assert top["top_class"].isna().all()
    assert len(classes.best_latents(table)) == 0


def test_each_class_gets_the_latent_that_finds_it_best(planted):
    a, groups, train = planted
    found = classes.best_latents(classes.pairs(a, groups, train)).set_index(["attribute", "class"])
    assert [found.loc[("label", f"class {c}"), "latent"] for c in range(6)] == list(range(6))
    assert (found.loc["label", "f1_held_out"] > 0.8).all()
    assert (found.loc["tint", "auroc_held_out"] < 0.7).all()  # no latent knows it


def test_a_caption_groups_nothing():
    table = pd.DataFrame(
        {"label": ["a", "b"] * 10, "caption": [f"text {i}" for i in range(20)], "kind": ["x", "y"] * 10}
    )
    assert list(classes.attributes(table)) == ["label", "kind"]
    table["label"] = None
    assert list(classes.attributes(table)) == ["kind"]
