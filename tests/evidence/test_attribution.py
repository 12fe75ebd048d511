"""Estimated effects: equal to exact removal where that is a small step, and zero-cost facts about planted causes."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from causes import clean, planted, real
from scipy import sparse

from sae import vit as vits
from sae.autoencoder import SparseAutoencoder
from sae.evidence import attribution, interventions


def estimate(model, sae, x, codes):
    geometry = vits.geometry(model)
    centre = sae.mean.numpy(), 0.7  # the result is the same for any scale
    by = attribution.gradients(model, x, sae.config.layer, geometry.select(sae.config.tokens), *centre, batch=5)
    return by, attribution.attribute(sae, codes, by)


@pytest.fixture(scope="module")
def cause():
    return planted()


@pytest.mark.parametrize("side", [48, 32])
def test_small_effects_are_those_of_exact_removal(monkeypatch, side):
    monkeypatch.setattr(attribution, "_MOVED", 0.0)
    model, sae, x, codes, _images = real(side=side)
    sae.W_dec *= 0.003
    names = vits.class_names(model)
    by, found = estimate(model, sae, x, codes)
    responses = interventions.run(model, sae, x, codes, list(range(24)), clean(model, sae, x), images=4)
    ablated = np.flatnonzero(responses.kind == 0)
    assert len(ablated) > 40
    exact = responses.effects[ablated, by.predicted[responses.image[ablated], 0]]
    entry = np.ravel(codes.images.toarray())
    number = np.full(len(entry), -1)
    number[entry > 0] = np.arange(codes.images.nnz)
    place = number.reshape(codes.images.shape)[responses.image[ablated], responses.latent[ablated]]
    big = abs(exact) > 0.05 * abs(exact).max()  # differences of float32 logits are coarse below
    assert big.sum() > 15
    np.testing.assert_allclose(found.effects[place, 0][big], exact[big], rtol=0.1)
    agreed = attribution.agreement(found, codes, responses, names)
    assert agreed["attribution_correlation"] > 0.9 and agreed["attribution_sign"] > 0.95


def test_each_planted_cause_has_the_largest_effect_on_its_class(cause):
    model, sae, x, codes, classes = cause
    names = vits.class_names(model)
    by, found = estimate(model, sae, x, codes)
    outputs = clean(model, sae, x)
    starts = np.cumsum([0, *(len(values) for values in names.values())])
    for group, (low, high) in enumerate(pairwise(starts)):
        assert (by.predicted[:, group] == outputs[:, low:high].argmax(1)).all()
    table = attribution.table(found, codes, names, top=1000)
    truth = dict(zip(zip(classes["attribute"], classes["class"], strict=True), classes["latent"], strict=True))
    winners = table.loc[table.groupby(["attribute", "class"])["effect"].idxmax()]
    right = [truth[a, c] == i for a, c, i in winners[["attribute", "class", "latent"]].itertuples(index=False)]
    assert len(right) > 20 and np.mean(right) > 0.8
    sizes = attribution.sizes(found, codes)
    assert len(sizes) == 37 and (sizes["estimated_effect"] > 0).all() and (sizes["estimated_control"] > 0).all()


def test_the_table_counts_images_and_averages_over_all_of_a_class(cause):
    model, sae, x, codes, _classes = cause
    names = vits.class_names(model)
    by, found = estimate(model, sae, x, codes)
    table = attribution.table(found, codes, names, top=1000)
    dense = np.zeros((*codes.images.shape, len(names)))
    row = np.repeat(np.arange(codes.images.shape[0]), np.diff(codes.images.indptr))
    dense[row, codes.images.indices] = found.effects
    for line in table.sample(30, random_state=0).itertuples():
        group = list(names).index(line.attribute)
        shown = by.predicted[:, group] == names[line.attribute].index(line[table.columns.get_loc("class") + 1])
        assert line.images == shown.sum() and line.effect == pytest.approx(dense[shown, line.latent, group].mean())
        assert line.active == (codes.images.toarray()[shown, line.latent] > 0).sum()
    few = attribution.table(found, codes, names, top=2)
    assert few.groupby("latent").size().max() == 2
    assert (few.groupby("latent")["effect"].first().abs() >= few.groupby("latent")["effect"].last().abs()).all()


def test_the_control_is_another_latent_of_the_same_norm(cause):
    _model, sae, _x, codes, _classes = cause
    other = attribution.others(codes, 0)
    assert (other != np.arange(37)).all() and len(set(other)) > 15
    alone = replace(codes, z=sparse.csr_array(codes.z.toarray() * (np.arange(37) == 3)))
    assert (attribution.others(alone, 0) == np.arange(37)).all()
    # With one direction for all latents, the control is the latent itself.
    alike = SparseAutoencoder(sae.config).requires_grad_(False)
    alike.W_dec[:] = sae.W_dec[:1] * torch.linspace(1, 2, 37)[:, None]
    slopes = np.random.default_rng(0).standard_normal((40, 2, 1, 192)).astype(np.float16)
    found = attribution.attribute(alike, codes, attribution.Gradients(slopes, np.zeros((40, 2), np.int64), np.ones(1)))
    np.testing.assert_allclose(found.control, found.effects, rtol=1e-4, atol=1e-5)


def test_agreement_of_equal_opposite_and_missing_effects(cause):
    model, sae, x, codes, _classes = cause
    names = vits.class_names(model)
    by, found = estimate(model, sae, x, codes)
    responses = interventions.run(model, sae, x, codes, [0, 5, 9], clean(model, sae, x), images=3)
    starts = np.cumsum([0, *(len(values) for values in names.values())])[:-1]
    effects = np.zeros_like(found.effects)
    for change in np.flatnonzero(responses.kind == 0):
        image, latent = responses.image[change], responses.latent[change]
        here = slice(*codes.images.indptr[image : image + 2])
        place = here.start + codes.images.indices[here].tolist().index(latent)
        effects[place] = responses.effects[change, starts + by.predicted[image]]
    for sign in (1, -1):
        exact = attribution.Attributions(sign * effects, effects, by.predicted)
        agreed = attribution.agreement(exact, codes, responses, names)
        assert agreed["attribution_correlation"] == pytest.approx(sign, abs=1e-6)
        assert agreed["attribution_sign"] == pytest.approx(float(sign > 0))
    nothing = replace(responses, effects=0 * responses.effects)
    assert pd.isna([*attribution.agreement(found, codes, nothing, names).values()]).all()
