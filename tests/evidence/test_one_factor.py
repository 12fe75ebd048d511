"""The response of latents to one factor at a time, on changes that are known."""

import numpy as np
import pandas as pd
import pytest
import torch

from sae import concepts, vit
from sae.autoencoder import SAEConfig, SparseAutoencoder
from sae.evidence import one_factor


def test_shares_of_known_changes():
    rng = np.random.default_rng(0)
    change = np.zeros((7, 40, 5), np.float32)
    change[2, :, 0] = 1  # only by texture
    change[:, :, 1] = rng.random((7, 40))  # by all alike
    change[1, :, 2], change[4, :, 2] = 3, 1  # mostly by colour
    change[0, ::2, 3], change[6, 1::2, 3] = 5, 1  # by shape on the pairs that choose, by objects on the others
    found = one_factor.table(change, change.shape[2])
    assert found["factor"].tolist()[:1] == ["texture"] and found["factor"][2] == "colour"
    np.testing.assert_allclose(found["factor_share"][[0, 2, 3]], [1, 0.75, 0], atol=1e-6)
    assert found["factor_share"][1] == pytest.approx(1 / 7, abs=0.04)
    assert found["factor_pairs"].tolist() == [40, 40, 40, 20, 0]
    assert pd.isna(found["factor"][4]) and np.isnan(found["factor_share"][4])  # never changes

    late = np.zeros((7, 4, 1), np.float32)
    late[3, 1::2] = 1  # on no pair that chooses
    assert one_factor.table(late, 1)[["factor", "factor_share"]].isna().all(axis=None)

    unknown = one_factor.table(None, 3)
    assert unknown["latent"].tolist() == [0, 1, 2] and list(unknown) == list(found)
    assert unknown.drop(columns="latent").isna().all(axis=None)

    value, drawn, n = one_factor.summarised(change)
    assert n == 4 and value == pytest.approx(found["factor_share"].mean())
    assert drawn.std() > 0 and abs(drawn.mean() - value) < 0.02
    nothing = one_factor.summarised(np.zeros((7, 4, 3), np.float32))
    assert np.isnan(nothing[0]) and nothing[2] == 0


def test_a_latent_that_reads_a_colour_responds_to_colour():
    """Tokens of a ViT that passes pixels on: the strongest patch of the red channel follows the object's colour."""
    model = vit.load("vit_tiny_patch16_224", "random", 112)
    tokens = one_factor.tokens(model, 0, vit.geometry(model).select("patches"), vit.pixel_transform(model), 5, 4, 9)
    assert tokens.shape == (4, 8, 49, 192) and tokens.dtype == np.float16
    assert (tokens[:, :1] != tokens[:, 1:]).any((2, 3)).all()  # no pair is the same image twice

    pictures = np.zeros((20, 8, 49, 3), np.float32)
    for i in range(20):
        first, others = concepts.variants(5, i)
        for place, concept in enumerate((first, *others.values())):
            pictures[i, place] = (concept.image / 255.0).reshape(7, 16, 7, 16, 3).mean((1, 3)).reshape(49, 3)
    dictionary = SparseAutoencoder(SAEConfig(3, 2, 2))
    with torch.no_grad():  # red against the others, and brightness
        dictionary.W_enc.copy_(torch.tensor([[2.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    change = one_factor.changes(dictionary, pictures)
    assert change.shape == (7, 20, 2)
    found = one_factor.table(change, change.shape[2])
    assert found["factor"].tolist() == ["colour", "background"]
    assert (found["factor_share"] > 2 / 7).all()  # twice what factors that matter equally would have
