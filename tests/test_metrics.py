"""Formulas, by the invariants that catch the known errors."""

import numpy as np
import pytest
import torch

from sae.activations import Activations
from sae.autoencoder import SAEConfig, SparseAutoencoder
from sae.evidence import fidelity

rng = np.random.default_rng(0)
X = rng.standard_normal((500, 8)) * np.arange(1, 9) + 50


def test_predicting_the_mean_vector_leaves_everything_unexplained():
    assert fidelity.fvu(X, np.broadcast_to(X.mean(0), X.shape)) == pytest.approx(1, abs=1e-12)
    assert fidelity.fvu(X, X) == 0


def test_a_constant_offset_counts():
    variance = X.var(0).sum()
    assert fidelity.fvu(X, X + 3) == pytest.approx(9 * 8 / variance)


def test_fvu_does_not_depend_on_units_or_on_the_order_of_rows():
    guess = X + rng.standard_normal(X.shape)
    order = rng.permutation(len(X))
    assert fidelity.fvu(X * 1e3 + 7, guess * 1e3 + 7) == pytest.approx(fidelity.fvu(X, guess))
    assert fidelity.fvu(X[order], guess[order]) == pytest.approx(fidelity.fvu(X, guess))


def test_cosine():
    assert fidelity.cosine(X, 3 * X) == pytest.approx(1)
    assert fidelity.cosine(np.eye(3), np.roll(np.eye(3), 1, 0)) == pytest.approx(0)
    assert fidelity.cosine(np.zeros((2, 3)), np.ones((2, 3))) == 0


def test_recovered():
    assert fidelity.recovered(1.0, 1.0, 3.0) == 1
    assert fidelity.recovered(1.0, 3.0, 3.0) == 0
    assert fidelity.recovered(1.0, 5.0, 3.0) < 0
    assert np.isnan(fidelity.recovered(1.0, 1.0, 1.0))
    assert np.isnan(fidelity.recovered(0.84759, 0.8476, 0.8476))  # rounding, not an ablation's cost


def test_kl():
    logits = torch.randn(20, 5, dtype=torch.float64)
    torch.testing.assert_close(fidelity.kl(logits, logits + 4), torch.zeros(20, dtype=torch.float64))
    certain, even = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert fidelity.kl(certain, even).item() == pytest.approx(np.log(2))


def autoencoder(latents=6, k=2):
    """An SAE whose latent i < 4 fires on x_i > 0 and which reconstructs that part exactly; 4 and 5 never fire."""
    m = SparseAutoencoder(SAEConfig(4, latents, k)).requires_grad_(False)
    m.W_enc[:4] = torch.eye(4)
    m.W_dec[:4] = torch.eye(4)
    m.b_enc[4:] = -1
    return m


def test_streaming_reconstruction_agrees_with_the_formulas():
    x = rng.standard_normal((300, 4)).astype(np.float32)
    m = autoencoder()
    found = fidelity.reconstruction(m, Activations.of(x))
    x_hat = m.decode(m.encode(x))
    assert found["fvu"] == pytest.approx(fidelity.fvu(x, x_hat))
    assert found["cosine"] == pytest.approx(fidelity.cosine(x, x_hat))
    assert found["l0"] == pytest.approx((m.encode(x) > 0).sum(1).mean())
    assert found["dead"] == pytest.approx(2 / 6)
    assert found["dense"] == pytest.approx(4 / 6)
    assert sum(found["density_histogram"]) == 4


def test_an_sae_that_says_the_mean_has_fvu_one():
    x = (rng.standard_normal((400, 4)) + 5).astype(np.float32)
    m = SparseAutoencoder(SAEConfig(4, 6, 2), torch.from_numpy(x.mean(0)))
    m.b_enc.data.fill_(-1)
    found = fidelity.reconstruction(m, Activations.of(x))
    assert found["fvu"] == pytest.approx(1, abs=1e-6)
    assert found["l0"] == 0 and found["dead"] == 1
