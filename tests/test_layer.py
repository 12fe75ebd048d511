"""The facts about a layer: its statistics, and all else that no dictionary changes."""

import numpy as np
import pytest
import small
import timm
import torch

from sae import extraction, images, statistics, vit
from sae.errors import InputError
from sae.evidence import layer_facts
from sae.images import HELD_OUT
from sae.layer import Layer
from sae.shards import Part
from sae.store import Activations

N = 300  # 75 of them held out: more than are read at once, and no multiple of that


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Layer 0 of images of noise by a ViT with two blocks."""
    folder = tmp_path_factory.mktemp("layer")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
    return small.setup(folder, model.requires_grad_(False), small.noise(folder, N), 0, "patches", 24)


def test_the_variance_is_that_of_all_held_out_tokens(given):
    x = given.layer.tokens("patches", given.layer.held_out)
    tokens = x.read(np.arange(len(x))).reshape(-1, 192).astype(float)
    np.testing.assert_allclose(given.facts.variance, tokens.var(0), rtol=1e-4)
    sample = small.sample_tokens(given).read(np.arange(len(given.layer.sample))).astype(float)
    spread = np.square(sample - sample.mean((0, 1))).sum((1, 2))
    np.testing.assert_allclose(given.facts.spread, spread, rtol=1e-6)


def test_outputs_with_ablated_tokens_are_the_models(given):
    x = given.layer.tokens("all", given.layer.sample)
    stream = torch.from_numpy(x.read(np.arange(len(x)))).float()
    for kind, value in (("clean", None), ("mean", torch.tensor(given.layer.centre[0]).float()), ("zero", 0.0)):
        changed = stream.clone()
        if value is not None:
            changed[:, 1:] = value
        outputs = vit.resume(given.vit, changed, 0).numpy()
        np.testing.assert_allclose(getattr(given.facts, kind), outputs, rtol=1e-3, atol=1e-4)
    assert not np.allclose(given.facts.clean, given.facts.zero)


def test_facts_survive_the_disk(given, tmp_path):
    given.facts.save(tmp_path / "layer.safetensors")
    read = layer_facts.LayerFacts.load(tmp_path / "layer.safetensors")
    for name, value in vars(given.facts).items():
        np.testing.assert_array_equal(getattr(read, name), value)


def test_dense_features_are_mean_and_maximum(given):
    features = layer_facts.dense_features(given.layer)
    x = given.layer.tokens("patches", given.layer.ranked["id"])
    tokens = x.read(np.arange(N)).astype(np.float32)
    np.testing.assert_allclose(features, np.concatenate([tokens.mean(1), tokens.max(1)], 1), rtol=1e-5)


def test_the_sample_is_among_the_ranked_images_however_many_there_are(given, monkeypatch):
    monkeypatch.setattr("sae.images.manifest.MOST_RANKED", 5)
    rows = images.ranked(given.layer.manifest, given.layer.sample)
    assert set(given.layer.sample) <= set(rows["id"]) and len(rows) <= 5 + len(given.layer.sample)
    assert rows["id"].is_monotonic_increasing


@pytest.fixture
def shards(tmp_path):
    """Images 20..29 in two shards of layer 3."""
    model, rng = vit.load("vit_tiny_patch16_224", "random", 32), np.random.default_rng(0)
    paths = []
    for i, ids in enumerate((range(20, 26), range(26, 30))):
        np.save(tmp_path / "part.npy", rng.integers(0, 256, (len(ids), 32, 32, 3), np.uint8))
        paths.append(tmp_path / f"shard={i:04d}.npy")
        extraction.extract(model, tmp_path / "part.npy", [Part(paths[-1], ids)], 3)
    return paths


def test_statistics_use_the_train_images_only_and_scale_to_d(shards):
    train = [20, 21, 22, 26]
    facts = statistics.of_tokens(shards, "patches", train)
    x = np.concatenate([b.reshape(-1, 192) for _, b in Activations.open(shards, "patches", train).blocks(9)]).astype(
        float
    )
    np.testing.assert_allclose(facts["mean"], x.mean(0), rtol=1e-5, atol=1e-6)
    scaled = (x - facts["mean"]) * facts["scale"]
    assert (scaled**2).sum(1).mean() == pytest.approx(192)
    assert facts["gamma"] == pytest.approx(np.linalg.norm(x.mean(0)) / np.sqrt(x.var(0).sum()))
    assert set(facts["norms"]) == {"class", "patch"}
    patch = np.linalg.norm(x, axis=1)
    assert facts["norms"]["patch"]["median"] == pytest.approx(np.median(patch), rel=0.01)
    assert facts["norms"]["patch"]["mean"] == pytest.approx(patch.mean(), rel=1e-3)
    assert sum(facts["norms"]["patch"]["histogram"]) == 16 and sum(facts["norms"]["class"]["histogram"]) == 4


def test_an_unhealthy_layer_is_called_so():
    healthy = {"gamma": 0.3, "outlier_patches": 0.0, "largest_dimensions": [{"dimension": 5, "share": 0.02}]}
    assert statistics.warnings_about(healthy) == []
    sick = {"gamma": 4.0, "outlier_patches": 0.02, "largest_dimensions": [{"dimension": 5, "share": 0.8}]}
    assert len(statistics.warnings_about(sick)) == 3
    assert "Dimension 5 alone carries 80%" in statistics.warnings_about(sick)[1]


def test_a_constant_layer_is_refused(tmp_path):
    broken = vit.load("vit_tiny_patch16_224", "random", 32)
    np.save(tmp_path / "same.npy", np.full((4, 32, 32, 3), 9, np.uint8))
    extraction.extract(broken, tmp_path / "same.npy", [Part(tmp_path / "shard.npy", range(4))], 0)
    with pytest.raises(InputError, match=r"shard\.npy: every token has the same activation"):
        statistics.of_tokens([tmp_path / "shard.npy"], "class", range(4))


def test_held_out_tokens_without_variance_are_refused(given):
    one = given.layer.manifest.assign(split=np.where(np.arange(N) == 0, HELD_OUT, "train"))
    reference = {**given.layer.reference, "ids": [0]}
    few = Layer(given.layer.shards, one, reference, {**given.layer.statistics, "tokens": "class"})
    with pytest.raises(InputError, match="all held-out tokens have the same activation"):
        layer_facts.compute(few, given.vit, 0, 24, 16)
