"""The monosemanticity score: its linear form, its chance level, and the embeddings it rests on."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from sae import vit
from sae.errors import InputError
from sae.evidence.monosemanticity import chance, embed, embedding_pixels, monosemanticity, shuffled


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
    control = shuffled(a, e, np.random.default_rng(0))
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
    for values in (monosemanticity(a, e), shuffled(a, e, rng), chance(a, e)[1]):
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


def test_thumbnails_are_means_of_blocks():
    pixels = np.random.default_rng(5).integers(0, 256, (70, 16, 24, 3), np.uint8)
    found = embedding_pixels(pixels)
    assert found.shape == (70, 192) and found.dtype == np.float32
    wanted = pixels.reshape(70, 8, 2, 8, 3, 3).mean((2, 4)) / 255
    np.testing.assert_allclose(found, wanted.transpose(0, 3, 1, 2).reshape(70, -1), atol=1e-6)
    assert embedding_pixels(np.zeros((2, 30, 37, 3), np.uint8)).shape == (2, 192)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Ten images of 48 pixels in two shards; number 4 is not used."""
    folder = tmp_path_factory.mktemp("pixels")
    pixels = np.random.default_rng(6).integers(0, 256, (9, 48, 48, 3), np.uint8)
    np.save(folder / "a.npy", pixels[:4])
    np.save(folder / "b.npy", pixels[4:])
    manifest = pd.DataFrame({"id": range(10), "status": ["broken" if i == 4 else "ok" for i in range(10)]})
    return [folder / "a.npy", folder / "b.npy"], manifest, dict(zip([0, 1, 2, 3, 5, 6, 7, 8, 9], pixels, strict=True))


def test_embeddings_are_what_the_head_reads_in_the_order_of_the_ids(shards):
    paths, manifest, pixels = shards
    model = vit.load("vit_tiny_patch16_224", "random", 48)
    ids = [7, 0, 9, 5]
    found = embed(model, paths, manifest, ids, batch=2)
    assert found.shape == (4, model.num_features) and found.dtype == np.float32
    read = []
    with torch.no_grad():
        handle = model.head.register_forward_hook(lambda _module, inputs, _output: read.append(inputs[0]))
        model(vit.normalise(model)(np.stack([pixels[i] for i in ids])))
        handle.remove()
    np.testing.assert_allclose(found, read[0].numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="image 4"):
        embed(model, paths, manifest, [3, 4])


def test_another_models_size_is_met_by_resizing(shards):
    paths, manifest, pixels = shards
    model = vit.load("vit_tiny_patch16_224", "random", 32)
    found = embed(model, paths, manifest, [1, 8])
    resized = [
        torch.nn.functional.interpolate(
            torch.from_numpy(pixels[i]).permute(2, 0, 1)[None].float(), (32, 32), mode="bilinear", antialias=True
        )
        for i in (1, 8)
    ]
    with torch.no_grad():  # this model's mean and standard deviation are 0.5
        wanted = model.forward_head(model.forward_features((torch.cat(resized) / 255 - 0.5) / 0.5), pre_logits=True)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-4)
