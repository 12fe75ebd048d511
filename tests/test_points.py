"""Everything of one grid point, on images without labels, by a model without a head, for all choices of tokens."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import timm

import sae
from sae import activations, extraction, points, vit
from sae.evidence import splice, summary
from sae.explorer import point

N = 40


@pytest.fixture(scope="module", params=[0, 5], ids=["no head", "a head without names"])
def layer(request, tmp_path_factory):
    """A layer's store of 40 images of noise, and the model."""
    folder = tmp_path_factory.mktemp("store")
    name = "vit_tiny_patch16_224"
    model = timm.create_model(name, img_size=32, depth=2, num_classes=request.param).eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    np.save(folder / "pixels.npy", rng.integers(0, 256, (N, 32, 32, 3), np.uint8))
    manifest = pd.DataFrame({"id": range(N), "label": None, "status": "ok", "group": range(N)})
    manifest["sha256"] = [f"{int(h):064x}" for h in rng.integers(2**62, size=N)]
    manifest["split"] = np.where(np.arange(N) % 4 == 0, "held_out", "train")
    shard = folder / "shard=0000.npy"
    extraction.extract(model, folder / "pixels.npy", range(N), 0, shard)
    ids = splice.sample(manifest, 100)
    logits = splice.predict(model, [folder / "pixels.npy"], manifest, ids)
    facts = {"geometry": asdict(vit.geometry(model)), "ids": ids}
    return folder, shard, manifest, facts, model, logits


@pytest.mark.parametrize("tokens", ["patches", "class", "all"])
def test_a_point_is_measured_whatever_the_images_and_the_model_lack(layer, tokens, tmp_path):
    _folder, shard, manifest, facts, model, logits = layer
    train = manifest.loc[manifest["split"] == "train", "id"]
    here = points.Layer([shard], manifest, facts, activations.statistics([shard], tokens, train))
    x = here.tokens(tokens, train)
    pair = [sae.train(x, 4, 24, seed=s, batch=30, epochs=3, layer=0, tokens=tokens, centre=here.centre) for s in (0, 1)]
    row, other_ks = points.evaluate(pair[0], here, model, logits, [1, 4], 8)
    assert 0 < row["fvu"] < 2 and len(other_ks) == 2
    ranking = points.ranked(pair[0], {1: pair[1]}, 0, here, 5, 3, 2)
    assert len(ranking.latents) == 24 and len(ranking.classes) == 0 and not ranking.latents["confirmed"].any()
    assert ranking.latents["stability_cosine"].between(-1, 1).all()
    e = np.random.default_rng(1).standard_normal((N, 6))
    found = points.gather(pair[0], pair[1], here, model, ranking, e, None, 5, 2)
    measured = set(found.summary["measure"])
    assert {"fvu", "stability"} <= measured <= set(summary.MEASURES)
    assert found.summary.set_index("measure").loc["fvu", "value"] == pytest.approx(row["fvu"], rel=1e-3)
    assert len(found.scores) == 24 and len(found.probes) == 0 and len(found.localisation) == 0
    assert (found.causes["size"] >= 0).all() and len(found.causes) <= 5
    tables = (ranking.latents, ranking.images, ranking.classes, found.scores, found.causes, found.effects)
    nothing = pd.DataFrame()  # one layer, one k
    where = {"layer": 0, "k": 4, "method": "topk", "seed": 0}
    point.write(tmp_path, where, pair[0], here, point.Tables(*tables, nothing, nothing), [0], 10)
    assert (tmp_path / "layer=0/k=4/method=topk/seed=0/latents/0000.js").read_text().count("headline") == 24
    again = points.gather(pair[0], pair[1], here, model, ranking, e, None, 5, 2)
    for name, table in found.tables().items():
        pd.testing.assert_frame_equal(table, again.tables()[name])


def test_the_ranking_survives_the_disk(layer, tmp_path):
    _folder, shard, manifest, facts, _model, _logits = layer
    labelled = manifest.assign(label=np.where(np.arange(N) % 3 == 0, "a", "b"))
    train = manifest.loc[manifest["split"] == "train", "id"]
    here = points.Layer([shard], labelled, facts, activations.statistics([shard], "patches", train))
    m = sae.train(here.tokens("patches", train), 4, 24, batch=30, layer=0, centre=here.centre)
    ranking = points.ranked(m, {1: m}, 0, here, 5, 3, 2)
    for name, table in points.tables(ranking, here).items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    names = ("latents", "images", "classes", "recovery", "activations")
    read = points.read_ranking({name: tmp_path / f"{name}.parquet" for name in names}, here, 24)
    assert (read.activations != ranking.activations).nnz == 0
    assert (ranking.latents["stability_cosine"] > 0.999).all()  # its own copy
    pd.testing.assert_frame_equal(read.recovery, ranking.recovery)


def test_the_embedding_is_never_of_the_layer_under_study(layer, tmp_path):
    _folder, shard, manifest, facts, _model, _logits = layer
    files = [str(tmp_path / "features.npy"), str(tmp_path / "pixels.npy")]
    for value, file in enumerate(files):
        np.save(file, np.full((N, 3), value))
    here = points.Layer([shard], manifest, facts, {})
    assert points.embedding(files, None, 0, here).mean() == 0
    assert points.embedding(files, None, 1, here).mean() == 1  # the last block: its features are this layer's
    assert points.embedding(files, "another", 1, here).mean() == 0
