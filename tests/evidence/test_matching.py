"""Matching latents, on dictionaries and codes whose truth is planted."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sae.errors import InputError
from sae.evidence import matching
from sae.evidence.matching import (
    across_ks,
    across_layers,
    assign,
    correlation,
    layer_summary,
    shuffled_rows,
    stability,
)

TOKENS = 8  # per image


def events(latents, n=4000, seed=0, share=0.05):
    """Dense codes [n, latents], each latent firing independently on a share of the tokens."""
    rng = np.random.default_rng(seed)
    return rng.uniform(1, 3, (n, latents)) * (rng.random((n, latents)) < share)


def csr(z):
    return sparse.csr_array(np.asarray(z, np.float32))


def directions(latents, d=24, seed=0):
    return np.random.default_rng(seed).standard_normal((latents, d))


def judged(one, two):
    return across_ks(correlation(csr(one), csr(two)), one.sum(0) > 0)


def test_correlation_is_numpys_block_by_block(monkeypatch):
    a, b = events(7, n=300, share=0.3), events(5, n=300, seed=1, share=0.3)
    b[:, 0] = a[:, 3] + 0.1 * b[:, 0]
    expected = np.corrcoef(a.T, b.T)[:7, 7:]
    found = correlation(csr(a), csr(b))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    monkeypatch.setattr(matching, "_BLOCK", 11)  # 2 of the 7 latents at a time
    np.testing.assert_allclose(correlation(csr(a[:, ::-1]), csr(b)), expected[::-1], atol=1e-6)


def test_silent_and_constant_latents_correlate_with_nothing():
    a, b = events(4), events(3, seed=1)
    a[:, 1], a[:, 2], b[:, 0] = 0, 0.1, 0
    r = correlation(csr(a), csr(b))
    assert not r[[1, 2]].any() and not r[:, 0].any() and r[0, 1:].all()


def test_correlation_needs_the_same_tokens():
    with pytest.raises(InputError, match="same tokens"):
        correlation(csr(events(2, n=10)), csr(events(2, n=11)))


def test_assignment_is_the_best_on_the_whole_not_the_greedy_one():
    partners, similarity = assign(np.array([[0.9, 0.8], [0.8, 0.1]]))
    assert partners.tolist() == [1, 0] and similarity.tolist() == [0.8, 0.8]


def test_a_renumbered_copy_is_perfectly_stable_whatever_its_units():
    decoder, z, order = directions(30), events(30), np.random.default_rng(1).permutation(30)
    copy = 7 * decoder[order], csr(3 * z[:, order])
    table, back = stability((decoder, csr(z)), {5: copy}), stability(copy, {0: (decoder, csr(z))})
    for found in (table, back):
        assert found["latent"].tolist() == list(range(30))
        np.testing.assert_allclose(found[["stability_cosine", "stability_correlation"]], 1, atol=1e-5)
    for name in ("partners_by_cosine", "partners_by_correlation"):
        assert (order[np.stack(table[name])[:, 0]] == np.arange(30)).all()
        assert (np.stack(back[name])[:, 0] == order).all()
    assert (np.stack(table["partner_seeds"]) == [5]).all() and (np.stack(back["partner_seeds"]) == [0]).all()


def test_stability_does_not_depend_on_a_seeds_numbering():
    seeds = {seed: (directions(20, seed=seed), events(20, n=800, seed=seed)) for seed in range(3)}
    order = np.random.default_rng(1).permutation(20)
    renumbered = seeds | {1: (seeds[1][0][order], seeds[1][1][:, order])}
    columns = ["stability_cosine", "stability_correlation"]

    def found(seeds, seed):
        whole = {s: (decoder, csr(z)) for s, (decoder, z) in seeds.items()}
        return stability(whole.pop(seed), whole)

    for seed in (0, 2):
        np.testing.assert_allclose(found(renumbered, seed)[columns], found(seeds, seed)[columns], atol=1e-6)
    np.testing.assert_allclose(found(renumbered, 1)[columns], found(seeds, 1)[columns].iloc[order], atol=1e-6)
    after, before = (np.stack(found(which, 0)["partners_by_cosine"]) for which in (renumbered, seeds))
    assert (order[after[:, 0]] == before[:, 0]).all() and (after[:, 1] == before[:, 1]).all()


def test_without_another_seed_nothing_is_said_of_the_stability():
    decoder, z = np.eye(4, 6, dtype=np.float32), csr(np.eye(4))
    table = stability((decoder, z), {})
    assert table[["stability_cosine", "stability_correlation"]].isna().all(axis=None) and table["fires"].all()
    assert not table["partner_seeds"].str.len().any() and not table["partner_correlations"].str.len().any()
    assert [*table] == [*stability((decoder, z), {1: (decoder, z)})]


def test_stability_is_the_mean_over_the_other_seeds_and_silence_has_no_correlation():
    decoder, z = np.eye(6, 12), events(6)
    z[:, 2] = 0
    own, away = (decoder, csr(z)), (np.eye(6, 12, 6), csr(events(6, seed=1)))
    table = stability(own, {2: away, 1: own})
    np.testing.assert_allclose(table["stability_cosine"], 0.5, atol=1e-6)
    assert table["fires"].tolist() == [True, True, False, True, True, True]
    assert (table["stability_correlation"].isna() == ~table["fires"]).all()
    np.testing.assert_allclose(table["stability_correlation"].dropna(), 0.5, atol=0.05)
    assert (np.stack(table["partner_seeds"]) == [1, 2]).all()
    r = np.stack(table["partner_correlations"])
    np.testing.assert_allclose(r[[0, 1, 3, 4, 5], 0], 1, atol=1e-5)
    np.testing.assert_allclose(r.mean(1)[table["fires"]], table["stability_correlation"].dropna())
    assert (np.stack(table["partners_by_cosine"])[:, 0] == np.arange(6)).all()
    unlike = stability(away, {0: own, 1: own})
    np.testing.assert_allclose(unlike["stability_cosine"], 0, atol=1e-6)


def test_dictionaries_of_two_sizes_cannot_be_matched():
    with pytest.raises(InputError, match="differ in size"):
        stability((directions(4), csr(events(4))), {1: (directions(5), csr(events(5)))})


def test_dictionaries_that_learnt_nothing_are_at_the_null():
    tokens = np.random.default_rng(3).standard_normal((2000, 24)) @ np.diag(np.r_[np.full(3, 5.0), np.ones(21)])
    nulls = matching.null_stability(200, tokens, np.random.default_rng(0))
    assert {name: len(values) for name, values in nulls.items()} == {"random directions": 200, "random tokens": 200}
    z = csr(events(200, n=80))
    random = stability((directions(200), z), {1: (directions(200, seed=1), z)})["stability_cosine"]
    copied = stability((tokens[:200], z), {1: (tokens[200:400], z)})["stability_cosine"]
    assert random.median() == pytest.approx(np.median(nulls["random directions"]), abs=0.03)
    assert copied.median() == pytest.approx(np.median(nulls["random tokens"]), abs=0.03)
    assert copied.median() > random.median() + 0.1


def test_the_tokens_null_is_centred_and_needs_enough_tokens():
    tokens = directions(100)
    null, moved = (
        matching.null_stability(50, x, np.random.default_rng(0))["random tokens"] for x in (tokens, tokens + 100)
    )
    np.testing.assert_allclose(moved, null, atol=1e-4)
    assert list(matching.null_stability(51, tokens, np.random.default_rng(0))) == ["random directions"]


def planted_ks():
    """Codes of two SAEs: the outcomes of 0 to 6 are same, split, changed, merged (into 0's), lost, dead, same."""
    one = events(7, n=8000)
    half = np.random.default_rng(1).random(len(one)) < 0.4
    noise = events(8, n=8000, seed=2)
    one[:, 5] = 0
    two = noise.copy()
    two[:, 0] = one[:, 0] + 0.6 * one[:, 3]
    two[:, 1], two[:, 2] = one[:, 1] * half, one[:, 1] * ~half
    two[:, 3] = 0.45 * one[:, 2] + noise[:, 3]
    two[:, 4] = one[:, 6]
    two[:, 5] = 0.4 * one[:, 6] + noise[:, 5]  # a hanger-on; with r = 1 beside it, it is no part of 6
    return one, two


TRUTH = ["same", "split", "changed", "merged", "lost", "dead", "same"]


def test_planted_outcomes_are_found():
    table = judged(*planted_ks())
    assert table["outcome"].tolist() == TRUTH
    assert table["best"].tolist()[:4] == [0, 2, 3, 0]
    assert table["children"].tolist() == [1, 2, 1, 0, 0, 0, 2]
    assert table["child_latents"].tolist() == [[0], [2, 1], [3], [], [], [], [4, 5]]
    assert table["r_best"].isna().tolist() == [outcome == "dead" for outcome in TRUTH] and table["best"][5] == -1


def test_outcomes_follow_the_latents_not_their_numbers_or_units():
    one, two = planted_ks()
    rng = np.random.default_rng(4)
    order, other = rng.permutation(one.shape[1]), rng.permutation(two.shape[1])
    table = judged(5 * one[:, order], two[:, other] / 5)
    assert table["outcome"].tolist() == [TRUTH[latent] for latent in order]
    split = table[table["outcome"] == "split"].iloc[0]
    assert other[split["child_latents"]].tolist() == [2, 1] and other[split["best"]] == 2


def test_thresholds_move_the_outcomes():
    one, two = planted_ks()
    r, fired = correlation(csr(one), csr(two)), one.sum(0) > 0
    assert across_ks(r, fired, threshold=0.35)["outcome"][2] == "same"
    assert across_ks(r, fired, threshold=0.9)["outcome"][0] == "changed"
    strict = across_ks(r, fired, threshold=0.9, partial=0.7)
    assert strict["outcome"].tolist() == ["changed", "changed", "lost", "lost", "lost", "dead", "same"]


def test_with_shuffled_tokens_nothing_is_the_same():
    one, _two = planted_ks()
    assert judged(one, one)["outcome"].value_counts().to_dict() == {"same": 6, "dead": 1}
    shuffled = judged(one, one[np.random.default_rng(0).permutation(len(one))])
    assert shuffled["outcome"].value_counts().to_dict() == {"lost": 6, "dead": 1}


def test_shuffling_gives_every_image_the_whole_rows_of_another():
    images = 12
    z = np.zeros((images * TOKENS, 2))
    z[:, 0] = np.repeat(np.arange(images), TOKENS) + 1
    z[:, 1] = np.tile(np.arange(TOKENS), images) + 1
    for seed in range(20):
        image, token = shuffled_rows(csr(z), TOKENS, np.random.default_rng(seed)).toarray().T.reshape(2, images, TOKENS)
        assert (image == image[:, :1]).all() and (token == np.arange(TOKENS) + 1).all()
        assert sorted(image[:, 0]) == list(range(1, images + 1)) and (image[:, 0] != np.arange(images) + 1).all()


def test_shuffling_needs_several_whole_images():
    for tokens in (7, 16):
        with pytest.raises(InputError, match="two or more held-out images"):
            shuffled_rows(csr(events(2, n=16)), tokens, np.random.default_rng(0))


def planted_layers():
    """Codes of four layers. 0 lasts through all, 1 through the first two, 2 from the third on; the rest comes and goes.

    Latent 3 is silent in the first and last layer.
    """
    layers = [events(6, seed=10 + layer) for layer in range(4)]
    lasting = events(3, seed=9)
    for layer, z in enumerate(layers):
        z[:, 0] = lasting[:, 0]
        if layer < 2:
            z[:, 1] = lasting[:, 1]
        else:
            z[:, 2] = lasting[:, 2]
    layers[0][:, 3] = layers[3][:, 3] = 0
    return layers


def followed(layers):
    codes = [csr(z) for z in layers]
    return across_layers([correlation(a, b) for a, b in pairwise(codes)], [z.sum(0) > 0 for z in layers])


def test_planted_latents_are_followed_across_layers():
    table = followed(planted_layers()).set_index(["position", "latent"])
    assert table.xs(0, level="latent")[["start", "length"]].to_numpy().tolist() == [[0, 4]] * 4
    assert table.xs(1, level="latent")["length"].tolist() == [2, 2, 1, 1]
    assert table.xs(2, level="latent")[["start", "length"]].to_numpy().tolist() == [[0, 1], [1, 1], [2, 2], [2, 2]]
    row = table.loc[(1, 1)]
    assert (row["previous"], row["appears"], row["persists"], row["ends"]) == (1, False, False, True)
    assert row["r_previous"] == pytest.approx(1) and row["r_next"] < 0.2
    row = table.loc[(2, 2)]
    assert (row["next"], row["appears"], row["persists"], row["ends"]) == (2, True, True, False)


def test_what_cannot_be_known_is_missing():
    table = followed(planted_layers()).set_index(["position", "latent"])
    assert table.loc[0, ["previous", "r_previous", "appears"]].isna().all(axis=None)
    assert table.loc[3, ["next", "r_next", "persists", "ends"]].isna().all(axis=None)
    silent = table.loc[(3, 3)]
    assert silent[["previous", "r_previous", "start"]].isna().all()
    assert silent["length"] == 0 and silent["appears"] == False  # noqa: E712
    assert table.loc[0, "ends"].notna().all() and table.loc[3, "appears"].notna().all()


def test_the_summary_counts_the_living():
    summary = layer_summary(followed(planted_layers()))
    assert summary["latents"].tolist() == [6] * 4 and summary["alive"].tolist() == [5, 6, 6, 5]
    assert pd.isna(summary["appear"][0]) and summary["appear"].tolist()[1:] == [4, 5, 3]
    assert summary["persist"].tolist()[:-1] == [2, 1, 2] and pd.isna(summary["persist"][3])
    assert summary["end"].tolist()[:-1] == [3, 5, 4] and pd.isna(summary["end"][3])


def test_matches_across_layers_share_no_latent_though_a_match_may():
    """Two latents of the first layer have the same best match; only the closer one is linked to it."""
    r = np.array([[0.9, 0.1], [0.6, 0.2]])
    table = across_layers([r], [np.ones(2, bool)] * 2)
    assert table["next"].tolist()[:2] == [0, 0] and table["persists"].tolist()[:2] == [True, True]
    assert table["length"].tolist() == [2, 1, 2, 1]


def test_matches_across_layers_follow_the_latents_not_their_numbers():
    layers = planted_layers()
    before = followed(layers).set_index(["position", "latent"])
    order = np.random.default_rng(0).permutation(6)
    layers[1] = layers[1][:, order]
    after = followed(layers).set_index(["position", "latent"])
    columns = ["start", "length", "appears", "persists", "ends"]
    assert after.loc[1, columns].to_numpy().tolist() == before.loc[1, columns].iloc[order].to_numpy().tolist()
    pd.testing.assert_frame_equal(after.loc[[0, 2, 3], columns], before.loc[[0, 2, 3], columns])


def test_with_images_shuffled_nothing_lasts():
    rng = np.random.default_rng(0)
    shuffled = followed([shuffled_rows(csr(z), TOKENS, rng).toarray() for z in planted_layers()])
    assert shuffled["length"].max() == 1 and layer_summary(shuffled)["persist"].sum() == 0


def test_matches_across_layers_need_a_matrix_between_each_two_layers():
    with pytest.raises(InputError, match="consecutive"):
        across_layers([np.zeros((3, 2))], [np.ones(2, bool), np.ones(3, bool)])
