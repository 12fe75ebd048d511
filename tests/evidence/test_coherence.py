"""Spatial coherence: patterns whose Moran's I is known, and the plain formula."""

import numpy as np
import pytest
import small

from sae.evidence import coherence


def moran(x):
    """Moran's I of one map, written as the textbook does."""
    rows, columns = x.shape
    places = [(r, c) for r in range(rows) for c in range(columns)]
    centred = x - x.mean()
    pairs = [(p, q) for p in places for q in places if p != q and max(abs(p[0] - q[0]), abs(p[1] - q[1])) == 1]
    return len(places) / len(pairs) * sum(centred[p] * centred[q] for p, q in pairs) / (centred**2).sum()


@pytest.mark.parametrize("prefix", [0, 1])
def test_the_mean_over_images_is_that_of_the_textbooks_formula(prefix, monkeypatch):
    monkeypatch.setattr(coherence, "_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    z = rng.random((20, prefix + 12, 6)) * (rng.random((20, prefix + 12, 6)) < 0.5)
    z[:, :, 4] = 0  # dead
    z[4:, :, 5] = 0  # on too few images
    z[0, prefix:, 3] = 0.7  # the same on all patches: no pattern
    z[1, prefix:, 3] = 0
    z[1, prefix : prefix + 2, 3] = 1  # on two patches alone
    found = coherence.coherence(small.coded(z), (3, 4)).set_index("latent")
    assert (
        found["coherence_images"].tolist()[3] <= 18
        and np.isnan(found["coherence"][4])
        and np.isnan(found["coherence"][5])
    )
    for latent in range(4):
        maps = [z[i, prefix:, latent].reshape(3, 4) for i in range(20)]
        values = [moran(x) for x in maps if (x > 0).sum() >= 3 and np.ptp(x) > 0]
        assert found["coherence"][latent] == pytest.approx(np.mean(values), abs=1e-5)
        assert found["coherence_images"][latent] == len(values)


def test_a_blob_is_coherent_a_chequerboard_is_not_and_shuffled_patches_are_at_chance():
    rng = np.random.default_rng(0)
    row, column = np.divmod(np.arange(64), 8)
    z = np.zeros((60, 64, 3))
    for image in range(60):
        top, left = rng.integers(0, 5, 2)
        z[image, :, 0] = (row >= top) & (row < top + 4) & (column >= left) & (column < left + 4)
        z[image, :, 1] = rng.permutation(z[image, :, 0])
    z[:, :, 2] = (row + column) % 2
    blob, shuffled, board = coherence.coherence(small.coded(z), (8, 8))["coherence"]
    assert blob > 0.6 and board < 0 and shuffled == pytest.approx(-1 / 63, abs=0.03)


def test_a_class_token_has_no_pattern():
    found = coherence.coherence(small.coded(np.ones((9, 1, 2))), (4, 4))
    assert found["coherence"].isna().all() and (found["coherence_images"] == 0).all()
