"""Measuring a dictionary: on images without labels, by a ViT without a head, for all choices of tokens."""

import gc
import tracemalloc

import numpy as np
import pytest
import small
import timm
import torch

import sae
from sae import measure
from sae import vit as vits
from sae.autoencoder import METHODS, SAEConfig, SparseAutoencoder
from sae.evidence import fidelity

N = 40


@pytest.fixture(scope="module", params=[0, 5], ids=["no head", "a head without names"])
def vit(request):
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=request.param).eval()


@pytest.fixture(scope="module", params=["patches", "class", "all"])
def setup(vit, request, tmp_path_factory):
    """A layer of 40 images of noise; every fourth is held out."""
    folder = tmp_path_factory.mktemp("store")
    return small.setup(folder, vit, small.noise(folder, N), 0, request.param, 24, ks=[1, 4, 99], latents=5, images=2)


@pytest.fixture(scope="module", params=METHODS)
def dictionary(setup, request):
    torch.manual_seed(0)
    config = SAEConfig(192, 24, 4, request.param, "standardised", 0, setup.layer.statistics["tokens"])
    mean, scale = setup.layer.centre
    model = SparseAutoencoder(config, torch.tensor(mean).float(), scale).requires_grad_(False)
    model.W_enc.normal_(std=0.1)
    model.W_dec.copy_(torch.nn.functional.normalize(model.W_enc))
    if request.param in ("batchtopk", "jumprelu"):
        model.threshold.fill_(0.5)
    return model.eval()


def test_codes_are_the_latents_on_every_token_and_their_maxima_by_image(setup, dictionary, monkeypatch):
    layer = setup.layer
    monkeypatch.setattr(measure, "_PRE_ACTIVATIONS", 24 * 12)  # a few images at a time
    codes = measure.measure(dictionary, setup).codes
    x = layer.tokens(layer.statistics["tokens"], layer.ranked["id"])
    tokens = x.read(np.arange(N)).reshape(-1, 192).astype(np.float32)
    z = dictionary.encode(tokens)
    np.testing.assert_allclose(codes.z.toarray(), z, rtol=1e-5, atol=1e-6)
    by_image = z.reshape(N, x.tokens, 24)
    np.testing.assert_allclose(codes.images.toarray(), by_image.max(1), rtol=1e-5, atol=1e-6)
    row, latent = by_image.max(1).nonzero()
    np.testing.assert_array_equal(codes.places[row, latent], by_image.argmax(1)[row, latent])
    held_out = (layer.ranked["split"] == "held_out").to_numpy()
    tally = codes.tally
    np.testing.assert_array_equal(tally.rows, [held_out.sum() * x.tokens, (~held_out).sum() * x.tokens])
    np.testing.assert_array_equal(tally.fired, [(by_image[s] > 0).sum((0, 1)) for s in (held_out, ~held_out)])
    np.testing.assert_array_equal(tally.by_token, (by_image > 0).sum(0).T)
    np.testing.assert_allclose(tally.total, z.sum(0), rtol=1e-5)
    high = np.linalg.norm(tokens, axis=1) > 4 * layer.statistics["norms"]["patch"]["median"]
    np.testing.assert_array_equal(tally.high, (z[high] > 0).sum(0))
    assert tally.high_rows == high.sum() and (tally.histogram.sum(1) == tally.fired.sum(0)).all()


def test_metrics_are_those_of_the_reconstruction(setup, dictionary):
    layer = setup.layer
    measured = measure.measure(dictionary, setup, keep_all=False)
    x = small.sample_tokens(setup)
    exact = x.read(np.arange(len(x))).reshape(-1, 192).astype(np.float32)
    z = dictionary.encode(exact)
    guess = dictionary.decode(z)
    row = measured.metrics
    assert row["fvu"] == pytest.approx(fidelity.fvu(exact, guess), rel=1e-4)
    assert row["cosine"] == pytest.approx(fidelity.cosine(exact, guess), rel=1e-4)
    assert row["l0"] == pytest.approx((z > 0).sum(1).mean()) and row["tokens"] == len(exact)
    error = np.square(exact.astype(float) - guess).reshape(len(x), -1).sum(1)
    np.testing.assert_allclose(measured.codes.error, error, rtol=1e-4)
    assert measured.codes.ids.tolist() == layer.sample.tolist()
    at = measured.other_ks.set_index("at_k")["fvu"]
    assert at.index.tolist() == [1, 4]  # there are 24 latents
    assert at[4] == pytest.approx(fidelity.fvu(exact, dictionary.decode(dictionary.encode(exact, 4))), rel=1e-4)
    assert len(np.unique(measured.responses.latent)) <= 5 and (measured.responses.size >= 0).all()
    groups = int(layer.geometry.outputs > 0)
    assert measured.attributions.effects.shape == (measured.codes.of(layer.sample).images.nnz, groups)
    assert measured.attributions.effects.any() == (row["attribution_sign"] > 0) == bool(groups)


def test_the_vit_sees_the_reconstruction(setup, dictionary):
    layer = setup.layer
    measured = measure.measure(dictionary, setup)
    pixels = vits.normalise(setup.vit)(np.load(str(layer.shards[0]).replace("layer=0", "pixels"))[layer.sample])
    with sae.splice(setup.vit, 0, dictionary), torch.inference_mode():
        outputs = setup.vit(pixels).numpy()
    assert measured.metrics["output_cosine"] == pytest.approx(fidelity.cosine(setup.logits, outputs), abs=2e-3)


def test_codes_survive_the_disk_and_can_be_restricted(setup, dictionary, tmp_path):
    codes = measure.measure(dictionary, setup).codes
    codes.save(tmp_path, {"seed": 1})
    read = sae.codes(tmp_path)
    for name in ("z", "images", "places"):
        one, two = getattr(codes, name), getattr(read, name)
        assert (one != two).nnz == 0 and one.dtype == two.dtype
    for name in ("ids", "image_ids", "error"):
        np.testing.assert_array_equal(getattr(read, name), getattr(codes, name))
    for name, value in vars(codes.tally).items():
        np.testing.assert_array_equal(getattr(read.tally, name), value)
    part = read.of(setup.layer.sample)
    assert part.z.shape[0] == len(setup.layer.sample) * codes.tokens
    second = measure.encode(dictionary, small.sample_tokens(setup))
    assert abs(part.z - second.z).max() < 1e-5
    second.save(tmp_path / "second", {})
    assert sae.codes(tmp_path / "second").images is None
    with pytest.raises(sae.InputError, match="image 99: its tokens are not in these codes"):
        read.of([0, 99])
    with pytest.raises(sae.InputError, match="no codes here"):
        sae.codes(tmp_path / "nowhere")


def test_patch_maps_are_the_activations_on_the_patches(setup, dictionary):
    codes = measure.measure(dictionary, setup).codes
    row, latent, _value = codes.entries()
    pairs = [(int(latent[0]), int(codes.ids[row[0] // codes.tokens])), (int(latent[-1]), 0)]
    maps = codes.patch_maps(pairs, (2, 2))
    if codes.tokens == 1:  # only the class token was encoded: there is no map to draw
        assert maps == {}
        return
    for one, image in pairs:
        z = codes.of([image]).z[:, [one]].toarray()[-4:].reshape(2, 2)
        np.testing.assert_array_equal(maps[one, image], z)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same layer with 1,000 and with 10,000 images; 20 of them go through the ViT."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).eval().requires_grad_(False)
    setups = {}
    for n in (1000, 10_000):
        folder = tmp_path_factory.mktemp(f"images-{n}")
        setups[n] = small.setup(
            folder, vit, small.noise(folder, n, 5), 0, "patches", 96, sample=20, latents=5, images=2
        )
    return setups


def test_memory_does_not_grow_with_the_images(stores, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "_PRE_ACTIVATIONS", 96 * 4 * 200)  # 200 images at a time
    model = SparseAutoencoder(SAEConfig(192, 96, 96, "topk", "standardised", 0)).requires_grad_(False)
    torch.manual_seed(0)
    model.W_enc.normal_()
    model.b_enc.fill_(1000)  # all latents fire on all tokens
    measure.measure(model, stores[1000])  # imports what comes with a first use
    peaks = {}
    for n, setup in stores.items():
        gc.collect()
        tracemalloc.start()
        codes = measure.measure(model, setup).codes
        codes.save(tmp_path / str(n), {})
        sae.codes(tmp_path / str(n)).of(setup.layer.sample)
        peaks[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(codes.ids) == n and codes.z.nnz == n * 4 * 96
    codes_of_9000_images = 9000 * 4 * 96 * (4 + 4)
    assert peaks[10_000] - peaks[1000] < codes_of_9000_images / 8, peaks
