"""The store on disk."""

import numpy as np
import pytest
import torch

from sae import extraction, store, vit
from sae.errors import InputError
from sae.shards import Part
from sae.store import Activations


@pytest.fixture(scope="module")
def model():
    return vit.load("vit_tiny_patch16_224", "random", 32)  # 1 + 2 x 2 tokens


@pytest.fixture
def pixels(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)
    np.save(tmp_path / "pixels.npy", array)
    return tmp_path / "pixels.npy"


@pytest.fixture
def shards(model, pixels, tmp_path):
    """Images 20..29 in two shards of layer 3."""
    array = np.load(pixels)
    paths = []
    for i, part in enumerate((slice(0, 6), slice(6, 10))):
        np.save(tmp_path / f"part{i}.npy", array[part])
        paths.append(tmp_path / f"shard={i:04d}.npy")
        ids = range(20 + part.start, 20 + part.stop)
        extraction.extract(model, tmp_path / f"part{i}.npy", [Part(paths[-1], ids)], 3, batch=4)
    return paths


def exact(model, pixels):
    with torch.no_grad():
        return vit.read(model, vit.normalise(model)(np.load(pixels)), 3).numpy()


def test_reading_by_split_and_token(model, pixels, shards):
    expected = exact(model, pixels)
    x = Activations.open(shards, "patches", ids=[21, 28, 25])
    assert x.ids.tolist() == [21, 25, 28] and x.tokens == 4
    blocks = list(x.blocks(2))
    assert [b[0].tolist() for b in blocks] == [[21, 25], [28]]
    np.testing.assert_allclose(np.concatenate([b[1] for b in blocks]), expected[[1, 5, 8], 1:], rtol=2e-3, atol=2e-3)
    assert Activations.open(shards, "class").tokens == 1
    assert Activations.open(shards, "all").tokens == 5


def test_damage_is_noticed(shards):
    with shards[0].open("r+b") as file:
        file.seek(-7, 2)
        file.write(b"\x01")
    with pytest.raises(InputError, match=f"^{shards[0]}: .*checksum"):
        Activations.open(shards)
    shards[1].unlink()
    with pytest.raises(InputError, match=f"^{shards[1]}: cannot be read as a shard: .*No such file"):
        Activations.open(shards, verify=False)


def test_shuffling_gives_every_token_once_in_an_order_of_its_own(shards):
    x = Activations.open(shards, "patches")
    epochs = [np.concatenate(list(x.shuffled(7, np.random.default_rng(seed)))) for seed in (0, 0, 1)]
    everything = np.concatenate([b.reshape(-1, 192) for _, b in x.blocks(3)])
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch[:, 0]), np.sort(everything[:, 0]))
    np.testing.assert_array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], epochs[2])
    assert [len(b) for b in x.shuffled(7, np.random.default_rng(0))] == [7, 7, 7, 7, 7, 5]
    assert x.steps(7) == 6 and x.steps(3, whole_images=True) == 4


def test_small_buffers_shuffle_all_the_same(shards, monkeypatch):
    monkeypatch.setattr(store, "_BUFFER_BYTES", 2 * 192 * 4 * 3)  # three images
    x = Activations.open(shards, "patches")
    batches = list(x.shuffled(7, np.random.default_rng(0)))
    everything = np.concatenate([b.reshape(-1, 192) for _, b in x.blocks(3)])
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)[:, 0]), np.sort(everything[:, 0]))
    assert [len(b) for b in batches] == [7, 7, 7, 7, 7, 5]


def test_a_batch_mixes_images_and_shards_as_ideal_shuffling_of_its_buffer_does():
    shards, images, batch = 20, 1000, 4096  # of 196 patches: 12 buffers, each as large as of a ViT 192 wide
    rows = np.stack(np.divmod(np.arange(shards * images), images), 1)
    stored = [np.zeros((images, 197, 192), np.float16)] * shards
    x = Activations(stored, np.arange(shards * images), rows, slice(1, None))
    drawn = x.shuffled(batch, np.random.default_rng(0), read=x.places)
    found = [next(drawn) // x.tokens for _ in range(60)]
    buffer = store._BUFFER_BYTES // (196 * 192 * 2)
    distinct, total = np.mean([len(np.unique(part)) for part in found]), shards * images
    ideal, expected = (n * (1 - (1 - 1 / n) ** batch) for n in (total, buffer))
    assert distinct == pytest.approx(expected, rel=0.01) and distinct > 0.6 * ideal
    counts = np.array([np.bincount(part // images, minlength=shards) for part in found])
    # Whole images come together: the spread is wider than that of single tokens, sqrt(batch / shards), by a little.
    assert counts.min() > 0.5 * batch / shards and counts.std() < 1.5 * np.sqrt(batch / shards)


def test_moments_are_exact_where_the_mean_is_large():
    x = np.random.default_rng(0).standard_normal((5000, 6)) * np.arange(1, 7) + 1e4
    mean, variance = store.moments(Activations.of(x))
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(variance, x.var(0))
