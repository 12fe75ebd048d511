"""Ranking, against a plain computation over the whole array."""

import numpy as np
import pandas as pd
import pytest
import small
import torch

from sae import images
from sae.autoencoder import SAEConfig, SparseAutoencoder
from sae.evidence import ranking
from sae.geometry import Geometry
from sae.latent_codes import HISTOGRAM_EDGES, Tally

SHAPE = Geometry(12, 6, ("class",), (2, 3), (32, 48), 10)
N, LATENTS, MEDIAN = 40, 9, 2.5


def counted(z, ids, train, norms):
    """Codes of latents z [images, tokens, F], with a tally that is counted plainly."""
    tokens, latents = z.shape[1:]
    fires = z > 0
    edges = np.append(np.append(0, HISTOGRAM_EDGES[1:-1]), np.inf)
    high = norms > 4 * MEDIAN
    tally = Tally(
        rows=np.array([(~train).sum(), train.sum()]) * tokens,
        fired=np.stack([fires[s].sum((0, 1)) for s in (~train, train)]),
        total=z.sum((0, 1)),
        histogram=np.stack([np.histogram(z[..., i][fires[..., i]], edges)[0] for i in range(latents)]),
        by_token=fires.sum(0).T,
        high=fires[high].sum(0),
        high_rows=np.array([high.sum()]),
    )
    return small.coded(z, ids, tally=tally)


@pytest.fixture(scope="module")
def case():
    """40 images of 6 patches; latents 0..5 follow a dimension each, 7 follows what 0 does, 6 and 8 stay dead."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((N, 7, 6)).astype(np.float32)
    tokens[3] = tokens[30]  # two images exactly alike: a tie between ids
    tokens[5, 2], tokens[5, 4] = tokens[5, 1], tokens[5, 1]  # and between the patches of one image
    m = SparseAutoencoder(SAEConfig(6, LATENTS, 4)).requires_grad_(False)
    m.W_enc[:6] = torch.eye(6)
    m.W_enc[7] = m.W_enc[0] * 0.9
    m.b_enc[6] = m.b_enc[8] = -100
    ids = np.arange(100, 100 + N)
    manifest = pd.DataFrame(
        {
            "id": ids,
            "path": [f"{i}.png" for i in ids],
            "label": ["cat", "dog", None, "cat"] * 10,
            "split": (["train"] * 3 + ["held_out"]) * 10,
            "status": "ok",
            "sha256": "",
            "width": 1,
            "height": 1,
            "mode": "RGB",
            "reason": "",
            "group": ids,
            "colour": ["red", "blue"] * 20,
            "caption": [f"caption {i}" for i in ids],
        }
    )
    z = m.encode(tokens[:, 1:].reshape(-1, 6)).reshape(N, 6, LATENTS)
    norms = np.linalg.norm(tokens[:, 1:], axis=2)
    return counted(z, ids, (manifest["split"] == "train").to_numpy(), norms), manifest, z, norms


@pytest.fixture(scope="module")
def found(case):
    codes, manifest, *_ = case
    return ranking.rank(codes, manifest, SHAPE, SHAPE.select("patches"), top=10, top_classes=3)


def test_top_images_by_their_strongest_patch_ties_by_id(case, found):
    _codes, _manifest, z, _norms = case
    strongest = z.max(1)  # [images, latents]
    for latent in (0, 1, 5, 7):
        rows = found.images[(found.images["latent"] == latent) & (found.images["panel"] == "top")]
        order = np.lexsort((np.arange(N), -strongest[:, latent]))[:10]
        order = order[strongest[order, latent] > 0]
        assert rows["image_id"].tolist() == (order + 100).tolist()
        assert rows["rank"].tolist() == list(range(1, len(order) + 1))
        np.testing.assert_allclose(rows["activation"], strongest[order, latent])
        patch = z[order, :, latent].argmax(1)  # numpy's argmax is the first of equals
        assert rows["token_row"].tolist() == (patch // 3).tolist()
        assert rows["token_col"].tolist() == (patch % 3).tolist()
        assert rows["image_id"].is_unique


def test_dead_latents_are_marked_and_have_no_images(found):
    latents = found.latents.set_index("latent")
    assert len(latents) == LATENTS
    assert latents.loc[[6, 8], "status"].tolist() == ["dead", "dead"]
    assert (latents.drop([6, 8])["status"] == "alive").all()
    assert not set(found.images["latent"]) & {6, 8}
    assert not set(found.classes["latent"]) & {6, 8}
    assert latents.loc[6, "frequency"] == 0 and np.isnan(latents.loc[6, "max_activation"])
    assert latents.loc[6, "histogram"].sum() == 0


def test_frequencies_and_histograms_count_tokens(case, found):
    _codes, manifest, z, _norms = case
    train = (manifest["split"] == "train").to_numpy()
    latents = found.latents
    np.testing.assert_allclose(latents["frequency"], (z[train] > 0).mean((0, 1)))
    np.testing.assert_allclose(latents["frequency_held_out"], (z[~train] > 0).mean((0, 1)))
    np.testing.assert_allclose(latents["image_frequency"], (z > 0).any(1).mean(0))
    np.testing.assert_allclose(latents["max_activation"].fillna(0), z.max((0, 1)), rtol=1e-6)
    for latent in range(6):
        values = z[:, :, latent][z[:, :, latent] > 0]
        np.testing.assert_allclose(latents["mean_activation"][latent], values.mean(), rtol=1e-6)
        edges = HISTOGRAM_EDGES.copy()
        edges[0], edges[-1] = 0, np.inf
        np.testing.assert_array_equal(latents["histogram"][latent], np.histogram(values, edges)[0])


def test_images_around_the_quartiles_and_silent_ones_stand_beside_the_strongest(case, found):
    _codes, _manifest, z, _norms = case
    strongest = z.max(1)
    for latent in (0, 3, 7):
        rows = found.images[found.images["latent"] == latent].set_index("panel")
        active = np.sort(strongest[:, latent][strongest[:, latent] > 0])
        for panel, share in {"q75": 0.75, "q50": 0.5, "q25": 0.25}.items():
            shown = rows.loc[panel]
            np.testing.assert_allclose(shown["activation"], strongest[shown["image_id"] - 100, latent], rtol=1e-6)
            below = (active < shown["activation"].median()).mean()
            assert abs(below - share) < 0.2
        silent = np.flatnonzero(strongest[:, latent] == 0) + 100
        if len(silent):
            listed = rows.loc[["silent"]]
            assert set(listed["image_id"]) <= set(silent) and len(listed) == min(4, len(silent))
            assert (listed[["activation", "token_row", "token_col"]] == [0, -1, -1]).all(axis=None)


def test_of_near_duplicates_the_strongest_is_listed(case):
    codes, manifest, z, _norms = case
    alike = manifest.assign(group=manifest["id"].where(manifest["id"] >= 120, 100))  # the first 20 look the same
    images = ranking.rank(codes, alike, SHAPE, SHAPE.select("patches"), top=40).images
    for latent in range(6):
        top = images[(images["latent"] == latent) & (images["panel"] == "top")]
        same = top[top["image_id"] < 120]
        strongest = z.max(1)[:20, latent]
        assert same["image_id"].tolist() == [100 + strongest.argmax()]
        assert len(top) == 1 + (z.max(1)[20:, latent] > 0).sum()


def test_token_types_are_shares_of_the_tokens_on_which_a_latent_fires(case, found):
    _codes, _manifest, z, norms = case
    latents, fires = found.latents, z > 0
    for latent in (0, 1, 2, 3, 4, 5, 7):
        here = fires[:, :, latent]
        assert latents["on_patch"][latent] == 1 and latents["on_class"][latent] == 0
        assert latents["on_high_norm"][latent] == pytest.approx((norms[here] > 4 * MEDIAN).mean())
        assert latents["on_border"][latent] == 1  # all 2 x 3 patches lie on it
    assert latents.loc[[6, 8], ["on_patch", "on_border", "by_row"]].isna().all(axis=None)
    assert (latents["token_type"] == "").all()


def test_the_class_of_a_latent_is_the_one_that_stands_out_and_is_confirmed():
    rng = np.random.default_rng(0)
    tokens = rng.random((400, 1, 4)).astype(np.float32) * 0.1
    colour, both = np.arange(400) % 4, np.arange(400) % 8
    tokens[colour == 2, 0, 0] += 1  # latent 0 sees a colour
    m = SparseAutoencoder(SAEConfig(4, 4, 4)).requires_grad_(False)
    m.W_enc[:] = torch.eye(4)
    ids = np.arange(400)
    manifest = pd.DataFrame({"id": ids, "label": [f"class {b}" for b in both], "group": ids})
    manifest = manifest.assign(split=np.where(ids % 5, "train", "held_out"), colour=[f"c{c}" for c in colour])
    z = m.encode(tokens[:, 0])[:, None]
    codes = counted(z, ids, ids % 5 > 0, np.linalg.norm(tokens, axis=2))
    found = ranking.rank(codes, manifest, Geometry(1, 4, (), (1, 1), (16, 16), 0), slice(None))
    table = found.latents
    assert table.loc[0, ["top_attribute", "top_class"]].tolist() == ["colour", "c2"]
    assert table["confirmed"].tolist() == [True, False, False, False]
    assert table.loc[1:, "top_class"].isna().all()
    ordered = found.classes.groupby(["latent", "attribute"])["mcc"]
    assert all(part.is_monotonic_decreasing for _, part in ordered)
    best = found.best_latents.set_index(["attribute", "class"])
    assert best.loc[("colour", "c2"), "latent"] == 0 and best.loc[("colour", "c2"), "f1_held_out"] > 0.9


def test_without_labels_there_are_no_classes(case):
    codes, manifest, *_ = case
    bare = manifest[["id", "split", "group"]].assign(label=None)
    found = ranking.rank(codes, bare, SHAPE, SHAPE.select("patches"))
    assert len(found.classes) == 0 and found.latents["top_class"].isna().all()


def test_class_tokens_have_no_patch(case):
    _codes, manifest, z, norms = case
    train = (manifest["split"] == "train").to_numpy()
    only = counted(z[:, :1], manifest["id"].to_numpy(), train, norms[:, :1])
    images = ranking.rank(only, manifest, SHAPE, SHAPE.select("class")).images
    assert (images[["token_row", "token_col"]] == -1).all(axis=None)


def test_synsets_become_words():
    assert images.describe("n02123045") == "tabby"
    assert images.describe("val/n02123045") == "tabby"
    assert images.describe("n04399382") == "teddy"
    assert images.describe("my cats, all of them") == "my cats, all of them"
