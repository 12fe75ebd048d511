"""Baselines: their directions are correct, and they are measured like SAEs."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from threadpoolctl import threadpool_limits

import sae
from sae import baselines, clusters, files, training
from sae.autoencoder import BASELINES
from sae.errors import InputError
from sae.evidence import fidelity
from sae.store import Activations, moments


@pytest.fixture(scope="module")
def tokens():
    """3,000 tokens of 12 dimensions with different variances, far from 0."""
    rng = np.random.default_rng(0)
    mix = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    return (rng.standard_normal((3000, 12)) * np.linspace(3, 0.1, 12) @ mix + 5).astype(np.float32)


def centre(x):
    mean, variance = moments(Activations.of(x))
    return mean, float(np.sqrt(x.shape[1] / variance.sum()))


def build(x, method, k=3, latents=40, seed=0):
    given = method, centre(x), seed
    rows = baselines.directions(Activations.of(x), latents, *given)
    return baselines.build(rows, baselines.sample(Activations.of(x), *given), k, *given[:2])


@pytest.mark.parametrize("method", baselines.COMPUTED)
def test_each_has_k_latents_active_unit_rows_and_beats_the_mean(tokens, method, tmp_path):
    m = build(tokens, method)
    z = m.encode(tokens)
    assert ((z > 0).sum(1) <= 3).all() and (z > 0).sum(1).mean() > 2.5
    np.testing.assert_allclose(np.linalg.norm(m.W_dec, axis=1), 1, rtol=1e-5)
    assert fidelity.fvu(tokens, m.decode(z)) < 0.9
    m.save(tmp_path)
    np.testing.assert_array_equal(sae.load(tmp_path).encode(tokens[:50]), z[:50])


def test_signed_neurons_keep_the_k_largest_deviations(tokens):
    m = build(tokens, "neurons")
    mean, scale = tokens.astype(np.float64).mean(0), float(m.scale)
    deviation = (tokens - mean) * scale
    kept = np.where(np.argsort(np.argsort(-np.abs(deviation), 1), 1) < 3, deviation, 0)
    np.testing.assert_allclose(m.decode(m.encode(tokens)), kept / scale + mean, atol=1e-4)
    assert m.config.latents == 24


def test_pca_is_the_best_orthogonal_dictionary_and_its_gain_is_one(tokens, monkeypatch):
    m = build(tokens, "pca", k=12)
    assert fidelity.fvu(tokens, m.decode(m.encode(tokens))) < 1e-6  # every direction has a sign that fires
    np.testing.assert_allclose(np.linalg.norm(m.W_enc, axis=1), 1, rtol=1e-4)
    monkeypatch.setattr(clusters, "MOST_TOKENS", 200)  # a sample tunes the gain, not the components
    for seed in (0, 1):
        torch.testing.assert_close(build(tokens, "pca", seed=seed).W_dec, m.W_dec[:24])
    first = np.linalg.svd(tokens - tokens.mean(0), full_matrices=False)[2][0]
    assert abs(first @ m.W_dec[0].numpy()) == pytest.approx(1, abs=1e-4)
    assert (fidelity.fvu(tokens, build(tokens, "pca").decode(build(tokens, "pca").encode(tokens)))) < fidelity.fvu(
        tokens, build(tokens, "neurons").decode(build(tokens, "neurons").encode(tokens))
    )


def test_kmeans_finds_clusters():
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((6, 12)) * 8
    x = (centres[rng.integers(6, size=4000)] + rng.standard_normal((4000, 12)) * 0.3).astype(np.float32)
    m = build(x, "kmeans", k=1, latents=24)
    directions = (centres - x.mean(0)) / np.linalg.norm(centres - x.mean(0), axis=1, keepdims=True)
    assert (directions @ m.W_dec.numpy().T).max(1).min() > 0.99


def test_ica_finds_independent_sources_and_loses_nothing():
    rng = np.random.default_rng(1)
    mixing = rng.standard_normal((8, 8))  # a column for each source
    x = (rng.laplace(size=(20_000, 8)) @ mixing.T + 3).astype(np.float32)
    m = build(x, "ica", k=8)
    assert m.config.latents == 16
    cosines = np.abs(m.W_dec.numpy() @ (mixing / np.linalg.norm(mixing, axis=0)))
    assert cosines.max(0).min() > 0.99
    pca = np.abs(build(x, "pca", k=8).W_dec.numpy() @ (mixing / np.linalg.norm(mixing, axis=0)))
    assert pca.max(0).min() < 0.9  # another answer than the directions of most variance
    assert fidelity.fvu(x, m.decode(m.encode(x))) < 1e-5
    flat = np.concatenate([x, 0 * x[:, :2]], 1)  # dimensions that never vary
    m = build(flat, "ica", k=8)
    assert m.config.latents == 16 and fidelity.fvu(flat, m.decode(m.encode(flat))) < 1e-5


def test_ica_has_as_many_latents_with_every_seed(monkeypatch):
    """Rare huge values decide which dimensions seem to vary; another number with another seed could not be compared."""
    monkeypatch.setattr(baselines, "_ICA_TOKENS", 500)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 24)).astype(np.float32)
    x[:, 12:] *= 1e-3
    x[::997, :12] *= 3000
    sizes = {build(x, "ica", seed=seed).config.latents for seed in range(4)}
    assert len(sizes) == 1


def test_clusters_do_not_depend_on_threads(tokens):
    with threadpool_limits(1):
        alone = build(tokens, "kmeans", latents=64).W_dec
    for _ in range(3):
        with threadpool_limits(4):
            assert torch.equal(build(tokens, "kmeans", latents=64).W_dec, alone)


def test_sampled_directions_are_tokens_and_seeds_differ_where_chance_enters(tokens):
    m = build(tokens, "sampled")
    centred = tokens - tokens.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose((m.W_dec.numpy() @ centred.T).max(1), 1, atol=1e-4)
    for method in ("ica", "kmeans", "random", "sampled"):
        assert torch.equal(build(tokens, method).W_dec, build(tokens, method).W_dec)
        assert not torch.equal(build(tokens, method).W_dec, build(tokens, method, seed=1).W_dec)


def test_orthonormal_directions_need_no_gain(tokens):
    x, centre = Activations.of(tokens), (tokens.mean(0), 0.5)
    for method in baselines.ORTHONORMAL:
        rows = baselines.directions(x, 40, method, centre)
        fitted = baselines.build(rows, baselines.sample(x, method, centre), 3, method, centre)
        torch.testing.assert_close(baselines.build(rows, None, 3, method, centre).W_enc, fitted.W_enc)


def test_the_gain_makes_the_error_smallest(tokens):
    m = build(tokens, "random")
    z = m.encode(tokens)
    errors = [fidelity.fvu(tokens, m.decode(z * factor)) for factor in (0.95, 1, 1.05)]
    assert errors[1] == min(errors)


def test_directions_are_the_same_for_every_k_and_when_read_again(tokens, tmp_path):
    rows = {m: baselines.directions(Activations.of(tokens), 40, m, centre(tokens), 1) for m in baselines.COMPUTED}
    files.write_arrays(tmp_path / "directions.safetensors", rows)
    again = files.read_arrays(tmp_path / "directions.safetensors")[0]
    assert again.keys() == rows.keys()
    for method, own in again.items():
        np.testing.assert_array_equal(own, rows[method])
        for k in (1, 5):
            encoder = torch.nn.functional.normalize(build(tokens, method, k, seed=1).W_enc).numpy()
            np.testing.assert_allclose(encoder, own, atol=1e-6)


def test_directions_need_no_torch():
    script = "import sys; from sae import baselines; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_decoder_never_moves_but_its_encoder_learns(tokens, precision):
    config = sae.TrainConfig(3, 40, "frozen", epochs=20, batch=100, lr=3e-3, precision=precision)
    start = sae.train(tokens, replace(config, epochs=1, lr=1e-9))
    m = sae.train(tokens, config)
    assert m.config.method == "frozen"
    torch.testing.assert_close(m.W_dec, start.W_dec)
    assert (m.W_enc - start.W_enc).abs().max() > 0.05
    learnt, before = (fidelity.fvu(tokens, one.decode(one.encode(tokens))) for one in (m, start))
    assert learnt < before
    free = sae.train(tokens, replace(config, method="topk", decoder="unit_norm"))
    assert fidelity.fvu(tokens, free.decode(free.encode(tokens))) < learnt


@pytest.mark.parametrize("precision", ["bf16", "autograd"])
def test_a_soft_frozen_decoder_moves_to_its_limit_and_no_further(tokens, precision, monkeypatch):
    if precision == "autograd":
        monkeypatch.setattr("sae.training.loop.SparseStep", None)
        precision = "fp32"
    config = sae.TrainConfig(3, 40, "soft_frozen", epochs=20, batch=100, lr=3e-3, precision=precision)
    start, m = sae.train(tokens, replace(config, epochs=1, lr=1e-9)), sae.train(tokens, config)
    cosine = (start.W_dec * m.W_dec).sum(1)
    assert cosine.min() > 0.8 - 1e-5 and (cosine < 0.8 + 1e-3).sum() >= 5
    torch.testing.assert_close(m.W_dec.norm(dim=1), torch.ones(40))
    fvu = [
        fidelity.fvu(tokens, one.decode(one.encode(tokens)))
        for one in (sae.train(tokens, replace(config, method=method, decoder="unit_norm")) for method in ORDER)
    ]
    assert fvu == sorted(fvu, reverse=True)


ORDER = ("frozen", "soft_frozen", "topk")  # the freer the decoder, the better it reconstructs


@pytest.mark.parametrize("kind", ["sparse", "autograd"])
def test_a_frozen_encoder_never_moves_but_its_decoder_learns(tokens, kind, monkeypatch):
    if kind == "autograd":
        monkeypatch.setattr("sae.training.loop.SparseStep", None)
    config = sae.TrainConfig(3, 40, "frozen_encoder", epochs=20, batch=100, lr=3e-3)
    start, m = sae.train(tokens, replace(config, epochs=1, lr=1e-9)), sae.train(tokens, config)
    torch.testing.assert_close(m.W_enc, start.W_enc)
    assert not m.b_enc.any()
    assert (m.W_dec - start.W_dec).abs().max() > 0.05
    learnt, before = (fidelity.fvu(tokens, one.decode(one.encode(tokens))) for one in (m, start))
    assert learnt < before


def test_mistakes_are_told(tokens):
    assert {*baselines.COMPUTED, *training.config.BASELINES} == set(BASELINES)
    with pytest.raises(InputError, match="40 directions cannot be drawn from 20 train tokens"):
        build(tokens[:20], "sampled")
    with pytest.raises(InputError, match="no such baseline"):
        build(tokens, "frozen")
