"""Ranking, against a plain computation over the whole array."""

import numpy as np
import pandas as pd
import pytest
import torch

from sae import images, ranking
from sae.activations import Activations
from sae.autoencoder import Settings, SparseAutoencoder
from sae.geometry import Geometry

GRID = Geometry(12, 6, ("class",), (2, 3), (32, 48), 10)
N, LATENTS = 40, 9


@pytest.fixture(scope="module")
def case():
    """40 images of 6 patches; latents 0..5 follow a dimension each, 7 follows what 0 does, 6 and 8 stay dead."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((N, 7, 6)).astype(np.float32)
    tokens[3] = tokens[30]  # two images exactly alike: a tie between ids
    tokens[5, 2], tokens[5, 4] = tokens[5, 1], tokens[5, 1]  # and between the patches of one image
    m = SparseAutoencoder(Settings(6, LATENTS, 4)).requires_grad_(False)
    m.W_enc[:6] = torch.eye(6)
    m.W_enc[7] = m.W_enc[0] * 0.9
    m.b_enc[6] = m.b_enc[8] = -100
    ids = np.arange(100, 100 + N)
    x = Activations([tokens], ids, np.stack([np.zeros(N, int), np.arange(N)], 1), slice(1, None))
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
            "colour": ["red", "blue"] * 20,
            "caption": [f"caption {i}" for i in ids],
        }
    )
    z = m.encode(tokens[:, 1:].reshape(-1, 6)).reshape(N, 6, LATENTS)
    return m, x, manifest, z


@pytest.fixture(scope="module")
def found(case):
    m, x, manifest, _ = case
    return ranking.rank(m, x, manifest, GRID, top=10, top_classes=3)


def test_top_images_by_their_strongest_patch_ties_by_id(case, found):
    *_, z = case
    strongest = z.max(1)  # [images, latents]
    for latent in (0, 1, 5, 7):
        rows = found.images[found.images["latent"] == latent]
        order = np.lexsort((np.arange(N), -strongest[:, latent]))[:10]
        order = order[strongest[order, latent] > 0]
        assert rows["image_id"].tolist() == (order + 100).tolist()
        assert rows["rank"].tolist() == list(range(1, len(order) + 1))
        np.testing.assert_allclose(rows["activation"], strongest[order, latent])
        patch = z[order, :, latent].argmax(1)  # numpy's argmax is the first of equals
        assert rows["token_row"].tolist() == (patch // 3).tolist()
        assert rows["token_col"].tolist() == (patch % 3).tolist()
        assert rows["image_id"].is_unique


def test_blocks_change_nothing(case, found, monkeypatch):
    m, x, manifest, _ = case
    read = Activations.blocks
    monkeypatch.setattr(Activations, "blocks", lambda self, _images: read(self, 3))
    again = ranking.rank(m, x, manifest, GRID, top=10, top_classes=3)
    pd.testing.assert_frame_equal(again.images, found.images)
    pd.testing.assert_frame_equal(again.classes, found.classes)
    pd.testing.assert_frame_equal(again.latents, found.latents)


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
    *_, manifest, z = case
    train = (manifest["split"] == "train").to_numpy()
    latents = found.latents
    np.testing.assert_allclose(latents["frequency"], (z[train] > 0).mean((0, 1)))
    np.testing.assert_allclose(latents["frequency_held_out"], (z[~train] > 0).mean((0, 1)))
    np.testing.assert_allclose(latents["image_frequency"], (z > 0).any(1).mean(0))
    np.testing.assert_allclose(latents["max_activation"].fillna(0), z.max((0, 1)), rtol=1e-6)
    for latent in range(6):
        values = z[:, :, latent][z[:, :, latent] > 0]
        np.testing.assert_allclose(latents["mean_activation"][latent], values.mean(), rtol=1e-6)
        edges = ranking.HISTOGRAM_EDGES.copy()
        edges[0], edges[-1] = 0, np.inf
        np.testing.assert_array_equal(latents["histogram"][latent], np.histogram(values, edges)[0])


def test_classes_by_mean_activation_with_their_support(case, found):
    *_, manifest, z = case
    strongest, train = z.max(1), (manifest["split"] == "train").to_numpy()
    for row in found.classes.itertuples():
        member = (manifest[row.attribute] == row._4).to_numpy()
        assert row.support == (member & train).sum() and row.support_held_out == (member & ~train).sum()
        assert row.score == pytest.approx(strongest[member & train, row.latent].mean())
        if row.support_held_out:
            assert row.score_held_out == pytest.approx(strongest[member & ~train, row.latent].mean())
        else:
            assert np.isnan(row.score_held_out)
    ordered = found.classes.groupby(["latent", "attribute"])["score"]
    assert all(part.is_monotonic_decreasing for _, part in ordered)
    assert set(found.classes["attribute"]) == {"label", "colour"}  # a caption of its own for each image is no class


def test_the_top_class_is_the_one_that_stands_out():
    rng = np.random.default_rng(1)
    tokens = rng.random((200, 1, 4)).astype(np.float32) * 0.1
    colour, both = np.arange(200) % 4, np.arange(200) % 8
    tokens[colour == 2, 0, 0] += 1  # latent 0 sees a colour
    m = SparseAutoencoder(Settings(4, 4, 4)).requires_grad_(False)
    m.W_enc[:] = torch.eye(4)
    ids = np.arange(200)
    manifest = pd.DataFrame(
        {"id": ids, "label": [f"class {b}" for b in both], "split": "train", "colour": [f"c{c}" for c in colour]}
    )
    x = Activations([tokens], ids, np.stack([ids * 0, ids], 1), slice(None))
    table = ranking.rank(m, x, manifest, Geometry(1, 4, (), (1, 1), (16, 16), 0)).latents
    assert table.loc[0, ["top_attribute", "top_class"]].tolist() == ["colour", "c2"]
    assert table.loc[0, "top_z"] > 3 > table.loc[1:, "top_z"].max()


def test_without_labels_there_are_no_classes(case):
    m, x, manifest, _ = case
    bare = manifest[["id", "split"]].assign(label=None)
    found = ranking.rank(m, x, bare, GRID)
    assert len(found.classes) == 0 and found.latents["top_class"].isna().all()


def test_class_tokens_have_no_patch(case):
    m, x, manifest, _ = case
    only = Activations(x._arrays, x.ids, x._rows, slice(0, 1))
    m.settings.__dict__["tokens"] = "class"
    try:
        images = ranking.rank(m, only, manifest, GRID).images
    finally:
        m.settings.__dict__["tokens"] = "patches"
    assert (images[["token_row", "token_col"]] == -1).all(axis=None)
    assert ranking.heat_maps(m, only, {100: [0]}, GRID) == {}


def test_heat_maps_are_the_activations_on_the_patches(case):
    m, x, _, z = case
    maps = ranking.heat_maps(m, x, {107: [0, 3]}, GRID)
    np.testing.assert_allclose(maps[3, 107], z[7, :, 3].reshape(2, 3), rtol=1e-6)


def test_synsets_become_words():
    assert images.describe("n02123045") == "tabby"
    assert images.describe("val/n02123045") == "tabby"
    assert images.describe("n04399382") == "teddy"
    assert images.describe("my cats, all of them") == "my cats, all of them"
