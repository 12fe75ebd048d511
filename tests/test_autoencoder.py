"""The SAE itself: encode, decode, save, load."""

import numpy as np
import pytest
import torch

import sae
from sae import autoencoder
from sae.autoencoder import METHODS, PER_TOKEN, SAEConfig, SparseAutoencoder
from sae.errors import InputError
from sae.files import read_json, write_json

X = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32)


def model(method="topk", k=3, latents=96, input="standardised"):
    """An SAE with random weights; about k of its latents are active on a token."""
    torch.manual_seed(0)
    m = SparseAutoencoder(SAEConfig(32, latents, k, method, input), torch.randn(32), 0.7).requires_grad_(False)
    for p in (m.W_enc, m.W_dec, m.b_enc, m.b_dec):
        p.normal_()
    if method in ("batchtopk", "jumprelu"):
        m.threshold.fill_(8.0)
    return m.eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("input", ["standardised", "layernorm"])
def test_saved_and_loaded_it_is_the_same(method, input, tmp_path):
    m = model(method, input=input)
    m.save(tmp_path)
    again = sae.load(tmp_path)
    assert again.config == m.config and again.record == m.record
    assert m.encode(X).any()
    np.testing.assert_array_equal(again.encode(X), m.encode(X))
    assert (method in ("batchtopk", "jumprelu")) == hasattr(again, "threshold")


@pytest.mark.parametrize("method", METHODS)
def test_no_tokens_have_no_latents(method):
    z = model(method).encode(X[:0])
    assert z.shape == (0, 96) and model(method).decode(z).shape == (0, 32)


def test_files_that_do_not_belong_together_are_explained(tmp_path):
    model().save(tmp_path / "m")
    facts = tmp_path / "m" / "sae.json"
    write_json(facts, read_json(facts) | {"latents": 97})
    with pytest.raises(InputError, match="does not fit"):
        sae.load(tmp_path / "m")
    with pytest.raises(InputError, match=r"no SAE here: sae\.json is missing"):
        sae.load(tmp_path)


def test_damaged_files_are_named(tmp_path):
    model().save(tmp_path)
    weights, facts = (tmp_path / f"sae.{ending}" for ending in ("safetensors", "json"))
    whole, text = weights.read_bytes(), facts.read_text()
    for damaged in (b"", whole[:20], whole[: len(whole) // 2], b"\xff" * 100):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match=r"sae\.safetensors: the file is damaged"):
            sae.load(tmp_path)
    weights.write_bytes(whole)
    for damaged in (text[:50], "[]", text.replace("96", "97")):
        facts.write_text(damaged)
        with pytest.raises(InputError, match=r"sae\.json: the file is damaged"):
            sae.load(tmp_path)
    write_json(facts, {})
    with pytest.raises(InputError, match=r"sae\.json: not the facts"):
        sae.load(tmp_path)
    with pytest.raises(InputError, match="is a file; give the folder"):
        sae.load(weights)


@pytest.mark.parametrize("method", METHODS)
def test_latents_are_chosen_as_the_method_says(method):
    m = model(method)
    pre = m.pre_activations(m.standardise(torch.from_numpy(X))).numpy()
    if method in PER_TOKEN:  # over latents: a token does not see its batch
        cut = np.sort(pre, axis=1)[:, -3:-2]
        expected = np.where(pre >= cut, pre, 0).clip(0)
    else:
        expected = np.where(pre > (0 if method == "relu" else 8.0), pre, 0)
    assert (expected > 0).any()
    np.testing.assert_allclose(m.encode(X), expected, atol=1e-5)
    np.testing.assert_allclose(m.encode(X[:1]), m.encode(X)[:1], atol=1e-5)


def test_arrays_give_arrays_and_tensors_give_tensors():
    m = model()
    z = m.encode(X)
    assert isinstance(z, np.ndarray) and z.shape == (200, 96) and (z >= 0).all()
    tensor = m.encode(torch.from_numpy(X))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), z)
    np.testing.assert_allclose(m(torch.from_numpy(X)).numpy(), m.decode(z), atol=1e-4)
    with pytest.raises(InputError, match=r"\(200, 96\): this SAE needs an array \[n, 32\]"):
        m.encode(z)


@pytest.mark.parametrize("method", ["topk", "jumprelu"])
def test_another_k_than_it_was_trained_for(method):
    m = model(method)
    z = m.encode(X, k=2)
    assert ((z > 0).sum(1) == 2).all()
    best = np.sort(m.encode(X, k=96), axis=1)[:, -2:]
    np.testing.assert_allclose(np.sort(z, axis=1)[:, -2:], best, atol=1e-5)
    with pytest.raises(InputError, match="k 97"):
        m.encode(X, k=97)


def test_the_kernel_chooses_what_torch_chooses(monkeypatch):
    for k in (1, 4, 96):
        m = model(k=k)
        m.b_enc.fill_(-15.0)  # often fewer than k are positive
        m.b_enc[-1] = 20.0
        fast = m.encode(X)
        with monkeypatch.context() as patch:
            patch.setattr(autoencoder, "topk", None)
            torch.testing.assert_close(m.encode(X), fast)
        assert fast[:, -1].any()  # the latent that fills free places
