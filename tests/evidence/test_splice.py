"""The SAE inside the ViT: properties that hold for every SAE."""

import numpy as np
import pandas as pd
import pytest
import torch

from sae import extraction, vit
from sae.autoencoder import SAEConfig, SparseAutoencoder
from sae.evidence import splice
from sae.shards import Part
from sae.store import Activations

LAYER = 4


@pytest.fixture(scope="module", params=["vit_tiny_patch16_224", "vit_tiny_concepts", "vit_small_patch14_reg4_dinov2"])
def setting(request, tmp_path_factory):
    """A ViT with random weights, its activations of 12 images and its outputs."""
    folder = tmp_path_factory.mktemp("splice")
    model = vit.load(
        request.param, "random", {"vit_tiny_patch16_224": 48, "vit_small_patch14_reg4_dinov2": 42}.get(request.param)
    )
    pixels = np.random.default_rng(0).integers(0, 256, (12, *vit.geometry(model).side, 3), np.uint8)
    np.save(folder / "pixels.npy", pixels)
    extraction.extract(model, folder / "pixels.npy", [Part(folder / "shard.npy", range(12))], LAYER)
    with torch.no_grad():
        clean = model(vit.normalise(model)(pixels)).numpy()
    return model, Activations.open([folder / "shard.npy"], "all"), clean


def identity(width, tokens="patches"):
    """An SAE that returns its input: a latent for each signed dimension, all of them allowed."""
    m = SparseAutoencoder(SAEConfig(width, 2 * width, 2 * width, layer=LAYER, tokens=tokens)).requires_grad_(False)
    m.W_enc[:] = torch.cat([torch.eye(width), -torch.eye(width)])
    m.W_dec[:] = m.W_enc
    return m.eval()


def constant(width, value, tokens="patches"):
    """An SAE that returns a constant vector."""
    m = SparseAutoencoder(SAEConfig(width, 4, 1, layer=LAYER, tokens=tokens), torch.from_numpy(value).float())
    m.b_enc.data.fill_(-1e9)
    return m.eval().requires_grad_(False)


def evaluate(setting, sae, mean, truth=None):
    model, x, clean = setting
    names, geometry = vit.class_names(model), vit.geometry(model)
    truth = np.full((len(x), len(names)), -1) if truth is None else truth
    chosen = geometry.select(sae.config.tokens)
    ablations = splice.ablated(model, x, LAYER, chosen, mean, batch=5)
    with torch.no_grad():
        tokens = torch.from_numpy(x.read(np.arange(len(x)))).float()
        tokens[:, chosen] = sae(tokens[:, chosen].flatten(0, 1)).reshape(tokens[:, chosen].shape)
        spliced = vit.resume(model, tokens, LAYER).numpy()
    return splice.metrics(clean, spliced, ablations["mean"], ablations["zero"], truth, names, bool(geometry.outputs))


def test_going_on_from_stored_activations_gives_the_models_own_outputs(setting):
    model, x, clean = setting
    found = splice.ablated(model, x, LAYER, slice(None), np.zeros(x.width), batch=5)
    scale = np.abs(clean).max()
    np.testing.assert_allclose(found["clean"], clean, rtol=0, atol=0.02 * scale)
    np.testing.assert_array_equal(found["mean"], found["zero"])
    assert np.abs(found["zero"] - clean).max() > 0.1 * scale


def test_a_perfect_sae_changes_nothing(setting):
    model, x, _ = setting
    row = evaluate(setting, identity(x.width), np.zeros(x.width))
    assert row["output_cosine"] == pytest.approx(1, abs=1e-3)
    if vit.geometry(model).outputs:
        assert row["top1_agreement"] > 0.9  # the store is fp16, random weights have near ties
        assert row["kl"] == pytest.approx(0, abs=1e-3)
        assert row["ce_recovered_zero"] == pytest.approx(1, abs=0.05)
    else:
        assert np.isnan(row["top1_agreement"]) and row["ce_target"] == "none"


def test_an_sae_that_says_the_mean_or_nothing_is_the_ablation(setting):
    model, x, _ = setting
    if not vit.geometry(model).outputs:
        return
    mean = x.read(np.arange(len(x)))[:, 1:].mean((0, 1))
    row = evaluate(setting, constant(x.width, mean), mean)
    assert row["ce"] == pytest.approx(row["ce_mean_ablated"], abs=1e-4)
    assert row["top1_agreement"] == row["top1_agreement_mean_ablated"]
    assert np.isnan(row["ce_recovered_mean"]) or row["ce_recovered_mean"] == pytest.approx(0, abs=1e-3)
    row = evaluate(setting, constant(x.width, np.zeros(x.width)), mean)
    assert row["ce"] == pytest.approx(row["ce_zero_ablated"], abs=1e-4)


def test_the_spliced_model_gives_the_outputs_of_replaced_tokens(setting):
    model, x, _ = setting
    torch.manual_seed(0)
    sae = identity(x.width)
    sae.W_dec.data *= 0.5  # halves every patch token
    with torch.no_grad():
        tokens = torch.from_numpy(x.read(np.arange(4))).float()
        by_hand = tokens.clone()
        by_hand[:, len(vit.geometry(model).prefix) :] *= 0.5
        expected = vit.resume(model, by_hand, LAYER)
        with vit.edit(model, LAYER, lambda _: tokens), vit.splice(model, LAYER, sae):
            side = vit.geometry(model).side
            found = model(torch.zeros(4, 3, *side))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_labels_that_the_head_knows_are_used(setting):
    model, x, clean = setting
    names = vit.class_names(model)
    if list(names) != ["label"]:
        return
    truth = clean.argmax(1)[:, None].copy()
    truth[6:] = (truth[6:] + 1) % 1000
    truth[11] = -1
    row = evaluate(setting, identity(x.width), np.zeros(x.width), truth)
    assert row["ce_target"] == "label"
    assert row["accuracy_clean"] == pytest.approx(6 / 11)
    assert row["ce_clean"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(torch.from_numpy(clean[:11]).double(), torch.from_numpy(truth[:11, 0])))
    )


def test_targets_match_synsets_and_attributes():
    manifest = pd.DataFrame(
        {"label": ["n02123045", "x/n02123045", "cat", None], "colour": ["red", "blue", None, "red"]}
    )
    names = {"label": ["n01", "n02123045"], "colour": ["blue", "red"], "shape": ["round"]}
    assert splice.targets(manifest, names).tolist() == [[1, 1, -1], [1, 0, -1], [-1, -1, -1], [-1, 1, -1]]
    assert splice.targets(manifest, {}).shape == (4, 0)


def test_agreement_with_a_shuffled_model_is_at_chance():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4000, 10))
    shuffled = logits[rng.permutation(4000)]
    row = splice.metrics(logits, shuffled, logits, logits, np.full((4000, 0), -1), {})
    assert row["top1_agreement"] == pytest.approx(0.1, abs=0.02)
    assert row["top1_agreement_mean_ablated"] == 1
    assert row["kl"] > 0.5


def test_the_sample_is_stable_when_images_are_added():
    def manifest(n):
        return pd.DataFrame(
            {
                "id": range(n),
                "status": "ok",
                "split": "held_out",
                "sha256": [f"{(i * 7919) % 1009:04d}" for i in range(n)],
            }
        )

    assert splice.sample(manifest(50), 100) == list(range(50))
    few, more = set(splice.sample(manifest(50), 20)), set(splice.sample(manifest(55), 20))
    assert len(few) == 20 and len(few & more) >= 15
