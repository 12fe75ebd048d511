"""Edges between latents of two layers, on ViTs whose blocks are known, and against removal."""

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from sae import measure
from sae.autoencoder import SAEConfig, SparseAutoencoder
from sae.evidence import edges
from sae.store import Activations

N, TOKENS, WIDTH = 12, 5, 192


def dictionary(rows, layer, k=4):
    """An SAE whose latents read and write these directions."""
    model = SparseAutoencoder(SAEConfig(WIDTH, len(rows), k, "topk", "standardised", layer)).requires_grad_(False)
    model.W_enc.copy_(rows)
    model.W_dec.copy_(rows)
    return model.eval()


@pytest.fixture(scope="module")
def vit():
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((N, TOKENS, WIDTH)).astype(np.float32)
    return tokens


def found(vit, x, source, target, after, **options):
    """Edges from tokens [n, tokens, d] of the source's layer; `after` are those of the target's."""
    sides = []
    for model, tokens in ((source, x), (target, after)):
        rows = torch.from_numpy(tokens.reshape(-1, WIDTH))
        values, indices = model.encode_sparse(rows)
        codes = measure.codes_of(np.arange(N), TOKENS, model.config.latents, values, indices)
        sides.append(edges.Side(model.config.layer, model, codes))

    class Stored(Activations):
        def read(self, index):
            return x[index]

    store = Stored.of(x.reshape(-1, WIDTH))
    return edges.edges(vit, *sides, store, slice(None), **options)


def test_without_blocks_between_an_edge_is_the_overlap_of_directions(vit, x, monkeypatch):
    """Blocks that change nothing: latent j of the next layer reads latent j of this one, and no other."""
    from sae import vit as vits

    monkeypatch.setattr(vits, "resume", lambda _vit, tokens, _layer, until: tokens)
    rows = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0][:6]
    source, target = dictionary(rows, 0, 6), dictionary(rows[[1, 0, 2, 3]], 1)
    table = found(vit, x, source, target, x, latents=4)
    best = table.groupby("target").head(1).set_index("target")
    assert best["latent"].to_dict() == {0: 1, 1: 0, 2: 2, 3: 3}
    np.testing.assert_allclose(best["share"], 1, rtol=1e-4)
    np.testing.assert_allclose(best["removed"], 1, rtol=1e-4)
    others = table[~table.index.isin(table.groupby("target").head(1).index)]
    assert (others["share"].abs() < 1e-4).all()
    assert (table["images"] == 4).all()


def test_estimates_agree_with_removal_and_the_control_does_not(vit, x):
    from sae import vit as vits

    torch.manual_seed(3)
    with torch.no_grad():
        after = vits.resume(vit, torch.from_numpy(x), 0, 1).numpy()
    plain = vits.read(vit, torch.zeros(1, 3, 32, 32), 1)
    assert plain.shape == (1, TOKENS, WIDTH) and after.shape == x.shape
    source = dictionary(torch.nn.functional.normalize(torch.randn(300, WIDTH)), 0, 20)
    target = dictionary(torch.nn.functional.normalize(torch.randn(60, WIDTH)), 1, 10)
    table = found(vit, x, source, target, after, latents=30, batch=7)
    r, sign = edges.agreement(table)
    assert r > 0.9 and sign > 0.95
    checked = table[table["removed"].notna()]
    assert abs(np.corrcoef(checked["control"], checked["removed"])[0, 1]) < 0.6
    assert list(table.columns) == edges.COLUMNS and not table.duplicated(["latent", "target"]).any()
    assert (table.groupby("target").size() <= edges.KEPT + 1).all()
    pd.testing.assert_frame_equal(
        table, found(vit, x, source, target, after, latents=30, batch=60), rtol=1e-3, atol=1e-5
    )


def test_too_few_checks_say_nothing():
    table = pd.DataFrame({"share": [1.0, 0.5], "removed": [0.9, np.nan]})
    assert np.isnan(edges.agreement(table)).all()
