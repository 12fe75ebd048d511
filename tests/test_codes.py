"""The sparse codes on which the evidence rests, against the SAE's own dense ones."""

import numpy as np
import pytest
import torch

from sae import codes
from sae.activations import Activations
from sae.autoencoder import METHODS, SAEConfig, SparseAutoencoder


@pytest.mark.parametrize("method", METHODS)
def test_codes_are_the_latents_on_every_token_and_their_maxima_by_image(method, monkeypatch):
    torch.manual_seed(0)
    m = SparseAutoencoder(SAEConfig(8, 30, 5, method)).requires_grad_(False)
    m.W_enc.normal_()
    if method in ("batchtopk", "jumprelu"):
        m.threshold.fill_(1.0)
    stored = np.random.default_rng(0).standard_normal((21, 6, 8)).astype(np.float16)
    stored[4] = 0  # nothing fires here
    stored[5, 3] = stored[5, 1]  # equal tokens: the first counts
    ids = np.arange(50, 71)
    x = Activations([stored], ids, np.stack([ids * 0, np.arange(21)], 1), slice(1, None))
    read = Activations.blocks
    monkeypatch.setattr(Activations, "blocks", lambda self, _images: read(self, 4))
    found = codes.encode(m, x)
    z = m.encode(stored[:, 1:].reshape(-1, 8).astype(np.float32))
    np.testing.assert_array_equal(found.z.toarray(), z)
    by_image = z.reshape(21, 5, 30)
    np.testing.assert_array_equal(found.images.toarray(), by_image.max(1))
    row, latent = by_image.max(1).nonzero()
    np.testing.assert_array_equal(found.places[row, latent], by_image.argmax(1)[row, latent])
    assert found.places.nnz == found.images.nnz and (found.z.data > 0).all()
    np.testing.assert_allclose(found.norms, np.linalg.norm(stored[:, 1:].astype(np.float32), axis=2).ravel(), rtol=1e-5)
    assert found.tokens == 5 and found.latents == 30 and found.ids.tolist() == ids.tolist()


def test_the_kernel_chooses_what_torch_chooses(monkeypatch):
    from sae import autoencoder

    torch.manual_seed(1)
    for k in (1, 4, 30):
        m = SparseAutoencoder(SAEConfig(8, 30, k)).requires_grad_(False)
        m.W_enc.normal_()
        m.b_enc.fill_(-1.0)  # often fewer than k are positive
        x = torch.randn(200, 8)
        fast = m.encode(x)
        with monkeypatch.context() as patch:
            patch.setattr(autoencoder, "selection", None)
            torch.testing.assert_close(m.encode(x), fast)
        assert fast[:, -1].any()  # the latent that stands for what is left over
        torch.testing.assert_close(m(x), m.decode(fast), rtol=1e-4, atol=1e-5)
