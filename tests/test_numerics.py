"""Activations of unusual sizes go through training, measuring and evidence without numbers that are none."""

import warnings

import contract
import numpy as np
import pandas as pd
import pytest
import small
import timm

import sae
from sae import baselines
from sae.autoencoder import BASELINES, METHODS
from sae.evidence import judge, layer_facts
from sae.files import write_json, write_table

F = 24
POINT = "layer=0/k=4/method=topk/seed=0"


def huge(vit):
    vit.blocks[0].mlp.fc2.weight.mul_(1e9)


def one_outlier(vit):
    vit.blocks[0].mlp.fc2.weight[5].mul_(1e5)


def tiny(vit):
    for parameter in (*vit.patch_embed.parameters(), vit.pos_embed, *vit.blocks[0].parameters()):
        parameter.mul_(1e-3)


def mostly_zero(vit):
    """Leaves three dimensions, of which one is the same for all tokens."""
    for parameter in (*vit.patch_embed.proj.parameters(), vit.pos_embed, vit.cls_token):
        rows = parameter if parameter.ndim != 3 else parameter[0].T
        rows[3:] = 0
    vit.blocks[0].mlp.fc2.weight.zero_()
    vit.blocks[0].attn.proj.weight.zero_()
    vit.blocks[0].mlp.fc2.bias[9] = 50


@pytest.fixture(scope="module", params=[huge, one_outlier, tiny, mostly_zero], ids=lambda change: change.__name__)
def given(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("numerics")
    vit = timm.create_model("test_vit", img_size=32, num_classes=3).eval().requires_grad_(False)
    request.param(vit)
    manifest = small.noise(folder, label=np.where(np.arange(40) % 3 == 0, "a", "b"))
    return small.setup(folder, vit, manifest, 0, "patches", F, latents=5, images=2)


def check(folder, measured, tables):
    """Compares the tables with the page that describes them."""
    for name, table in tables.items():
        kind = "ranking" if name in ("latents", "images", "classes", "best_latents") else "evidence"
        write_table(folder / kind / POINT / f"{name}.parquet", table)
    write_table(folder / f"metrics/{POINT}.parquet", pd.DataFrame([{"seed": 0} | measured.metrics]))
    write_table(folder / f"other_ks/{POINT}.parquet", measured.other_ks)
    measured.codes.save(folder / "codes" / POINT, {})
    assert contract.problems(folder) == []


def test_statistics_and_facts_are_finite(given, tmp_path):
    write_json(tmp_path / "statistics.json", given.layer.statistics)
    given.facts.save(tmp_path / "layer.safetensors")
    np.save(tmp_path / "dense.npy", layer_facts.dense_features(given.layer))
    assert contract.problems(tmp_path) == []
    x = given.layer.tokens("patches", given.layer.train)
    norms = np.linalg.norm(x.read(np.arange(len(x))).astype(float), axis=2)
    assert given.layer.statistics["norms"]["patch"]["median"] == pytest.approx(np.median(norms), rel=0.01)


@pytest.mark.parametrize(("method", "input"), [*((m, "standardised") for m in METHODS), ("topk", "layernorm")])
def test_every_method_trains_and_is_measured(given, tmp_path, method, input):
    config = sae.TrainConfig(k=4, latents=F, batch=30, epochs=3, method=method, input=input)
    saes = {seed: small.train(given, 0, config, seed) for seed in (0, 1)}
    for model in saes.values():
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        measured, tables = small.judged(given, saes, 0, judge.Limits(5, 3, 2))
    check(tmp_path, measured, tables)


@pytest.mark.parametrize("method", BASELINES)
def test_every_baseline_is_measured(given, tmp_path, method):
    x, centre = given.layer.tokens("patches", given.layer.train), given.layer.centre
    saes = {}
    for seed in (0, 1):
        if method not in baselines.COMPUTED:
            saes[seed] = small.train(given, 0, sae.TrainConfig(k=4, latents=F, batch=30, method=method), seed)
            continue
        rows = baselines.directions(x, F, method, centre, seed)
        fit = None if method in baselines.ORTHONORMAL else baselines.sample(x, method, centre, seed)
        saes[seed] = baselines.build(rows, fit, 4, method, centre, 0)
    check(tmp_path, *small.judged(given, saes, 0, judge.Limits(5, 3, 2)))
