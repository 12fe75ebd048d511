"""Formulas, by the invariants that catch the known errors."""

import numpy as np
import pytest
import torch

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
    logits = rng.standard_normal((20, 5))
    np.testing.assert_allclose(fidelity.kl(logits, logits + 4), np.zeros(20), atol=1e-12)
    certain, even = np.array([[100.0, 0.0]]), np.array([[0.0, 0.0]])
    assert fidelity.kl(certain, even).item() == pytest.approx(np.log(2))


def summed(m: SparseAutoencoder, x: np.ndarray, ks: tuple[int, ...] = ()) -> fidelity.Fidelity:
    """Sums over `x` [n, d] in two blocks of images with one token each."""
    sums = fidelity.Fidelity(m.config.latents, ks)
    for block in np.array_split(x[:, None], 2):
        pre = m.pre_activations(m.standardise(torch.from_numpy(block[:, 0])))
        values, indices = m.select(pre)
        guess = m(torch.from_numpy(block[:, 0]))
        errors = sums.add(m, block, guess, values, indices, pre)
        np.testing.assert_allclose(errors, np.square(block[:, 0] - guess.numpy()).sum(1), rtol=1e-4)
    return sums


def autoencoder(latents=6, k=2):
    """An SAE whose latent i < 4 fires on x_i > 0 and which reconstructs that part exactly; 4 and 5 never fire."""
    m = SparseAutoencoder(SAEConfig(4, latents, k)).requires_grad_(False)
    m.W_enc[:4] = torch.eye(4)
    m.W_dec[:4] = torch.eye(4)
    m.b_enc[4:] = -1
    return m


def test_sums_over_blocks_agree_with_the_formulas():
    x = rng.standard_normal((300, 4)).astype(np.float32)
    m = autoencoder()
    sums = summed(m, x, (1, 2, 50))
    row, x_hat = sums.row(x.astype(float).var(0)), m.decode(m.encode(x))
    assert row["fvu"] == pytest.approx(fidelity.fvu(x, x_hat))
    assert row["cosine"] == pytest.approx(fidelity.cosine(x, x_hat))
    assert row["l0"] == pytest.approx((m.encode(x) > 0).sum(1).mean())
    assert row["dead"] == pytest.approx(2 / 6)
    assert row["dense"] == pytest.approx(4 / 6)
    assert sum(row["density_histogram"]) == 4
    other = sums.other_ks(x.astype(float).var(0)).set_index("at_k")
    assert other.index.tolist() == [1, 2]  # there are 6 latents
    assert other.loc[2, "fvu"] == pytest.approx(row["fvu"])
    assert other.loc[1, "fvu"] == pytest.approx(fidelity.fvu(x, m.decode(m.encode(x, 1))), rel=1e-5)
    assert other.loc[1, "l0"] == pytest.approx((m.encode(x, 1) > 0).sum(1).mean())


def test_an_sae_that_says_the_mean_has_fvu_one():
    x = (rng.standard_normal((400, 4)) + 5).astype(np.float32)
    m = SparseAutoencoder(SAEConfig(4, 6, 2), torch.from_numpy(x.mean(0))).requires_grad_(False)
    m.b_enc.fill_(-1)
    row = summed(m, x).row(x.astype(float).var(0))
    assert row["fvu"] == pytest.approx(1, abs=1e-6)
    assert row["l0"] == 0 and row["dead"] == 1
