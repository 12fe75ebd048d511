"""The monosemanticity score: its linear form, its chance level, and the embeddings it rests on."""

from itertools import permutations

import numpy as np
import pytest
from scipy import sparse

from sae.evidence.monosemanticity import chance, monosemanticity


def drawn(n, latents, dimensions, seed=0, density=0.5):
    rng = np.random.default_rng(seed)
    a = sparse.random_array((n, latents), density=density, rng=rng, format="csr", dtype=np.float32)
    return a, rng.standard_normal((n, dimensions)) + 3


def quadratic(a, e):
    """The definition, pair by pair."""
    e = e - e.mean(0)
    e = e / np.linalg.norm(e, axis=1, keepdims=True)
    scores = []
    for column in a.toarray().astype(np.float64).T:
        weights = np.outer(column, column)
        np.fill_diagonal(weights, 0)
        scores.append((weights * (e @ e.T)).sum() / weights.sum())
    return np.array(scores)


def test_the_linear_form_is_the_sum_over_pairs():
    a, e = drawn(30, 8, 5)
    np.testing.assert_allclose(monosemanticity(a, e), quadratic(a, e), rtol=1e-9)


@pytest.fixture(scope="module")
def clusters():
    """400 images in 8 tight clusters around a common mean; latent c fires on cluster c, latents 8 to 39 at random."""
    rng = np.random.default_rng(1)
    cluster = rng.integers(0, 8, 400)
    e = 10 + rng.standard_normal((8, 32))[cluster] + 0.05 * rng.standard_normal((400, 32))
    a = rng.uniform(1, 2, (400, 40)) * (rng.random((400, 40)) < 0.15)
    a[:, :8] = (cluster[:, None] == np.arange(8)) * rng.uniform(1, 2, (400, 8))
    return sparse.csr_array(a), e


def test_a_latent_of_one_cluster_scores_near_1_and_a_random_one_near_0(clusters):
    scores = monosemanticity(*clusters)
    assert scores[:8].min() > 0.97
    assert np.abs(scores[8:]).max() < 0.1


def test_shuffling_the_images_leaves_nothing(clusters):
    a, e = clusters
    control = monosemanticity(a, e[np.random.default_rng(0).permutation(len(e))])
    assert np.abs(control).max() < 0.12 and np.abs(control.mean()) < 0.03
    mean, deviation = chance(a, e)
    assert ((monosemanticity(a, e) - mean) / deviation)[:8].min() > 20
    assert np.abs((control - mean) / deviation).max() < 6


def test_order_and_scale_change_nothing(clusters):
    a, e = clusters
    rng = np.random.default_rng(2)
    scores = monosemanticity(a, e)
    latents, images = rng.permutation(a.shape[1]), rng.permutation(len(e))
    np.testing.assert_allclose(monosemanticity(a[:, latents], e), scores[latents], atol=1e-12)
    np.testing.assert_allclose(monosemanticity(a[images], e[images]), scores, atol=1e-12)
    np.testing.assert_allclose(monosemanticity((a @ sparse.diags_array(rng.uniform(0.1, 9, 40))).tocsr(), e), scores)
    np.testing.assert_allclose(monosemanticity(a, 7 * e - 40), scores, rtol=1e-6)


def test_a_latent_on_fewer_than_two_images_has_no_score():
    rng = np.random.default_rng(3)
    single = np.diag(rng.random(20))
    a = sparse.csr_array(np.hstack([np.zeros((20, 1)), single, single + np.roll(single, 1, axis=0)]))
    e = rng.standard_normal((20, 4))
    for values in (monosemanticity(a, e), chance(a, e)[1]):
        assert np.isnan(values).tolist() == [True] * 21 + [False] * 20


def test_images_that_are_all_the_same_tell_nothing():
    a, _ = drawn(10, 4, 3)
    np.testing.assert_array_equal(monosemanticity(a, np.full((10, 3), 0.1)), np.zeros(4))


def test_chance_is_exact():
    a, e = drawn(6, 5, 3, seed=4, density=0.8)
    every = np.array([monosemanticity(a, e[list(order)]) for order in permutations(range(6))])
    mean, deviation = chance(a, e)
    np.testing.assert_allclose(every.mean(0), np.full(5, mean), atol=1e-12)
    np.testing.assert_allclose(every.std(0), deviation, atol=1e-9)
