"""From pixels to activations and to the outputs of the untouched ViT."""

import hashlib
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from sae import extraction, vit
from sae.errors import InputError
from sae.files import check, read_json
from sae.images import ranked
from sae.shards import Part, limited
from sae.store import Activations


@pytest.fixture(scope="module")
def model():
    return vit.load("vit_tiny_patch16_224", "random", 32)  # 1 + 2 x 2 tokens


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two pixel shards, their manifest with one image that is not used, and all pixels."""
    folder = tmp_path_factory.mktemp("pixels")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    paths = [folder / "a.npy", folder / "b.npy"]
    for path, part in zip(paths, (pixels[:4], pixels[4:]), strict=True):
        np.save(path, part)
    manifest = pd.DataFrame({"id": range(10), "status": "ok", "split": "held_out", "label": "n02123045"})
    manifest["path"] = [f"cat/{i}.png" for i in manifest["id"]]
    manifest["sha256"] = [hashlib.sha256(bytes([i])).hexdigest() for i in manifest["id"]]
    manifest.loc[4, "status"] = "broken"
    return paths, manifest, pixels


def exact(model, pixels, layer=3):
    with torch.no_grad():
        return vit.read(model, vit.normalise(model)(pixels), layer).numpy()


def test_a_shard_holds_all_tokens_in_order(model, images, tmp_path):
    paths, _, pixels = images
    out = tmp_path / "shard.npy"
    extraction.extract(model, paths[1], [Part(out, range(25, 30))], 3, batch=2, provenance=lambda: {"seed": 1})
    stored = np.load(out)
    assert stored.dtype == np.float16 and stored.shape == (5, 5, 192)
    np.testing.assert_allclose(stored, exact(model, pixels[4:]), rtol=2e-3, atol=2e-3)
    facts = read_json(out.with_suffix(".json"))
    assert facts["ids"] == [25, 26, 27, 28, 29] and facts["provenance"] == {"seed": 1}
    assert facts["roles"] == ["class"] and facts["patches"] == [2, 2] and facts["layer"] == 3


def test_a_silent_progress_bar_changes_nothing(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "tqdm", partial(extraction.tqdm, disable=True))  # as TQDM_DISABLE=1 does
    extraction.extract(model, images[0][1], [Part(tmp_path / "shard.npy", range(25, 30))], 3, batch=2)
    np.testing.assert_allclose(np.load(tmp_path / "shard.npy"), exact(model, images[2][4:]), rtol=2e-3, atol=2e-3)
    check(tmp_path / "shard.npy", read_json(tmp_path / "shard.json")["sha256"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_is_close(model, images, tmp_path, dtype):
    paths, _, pixels = images
    extraction.extract(model, paths[0], [Part(tmp_path / "low.npy", range(4))], 3, dtype=dtype)
    expected = exact(model, pixels[:4])
    error = np.abs(np.load(tmp_path / "low.npy") - expected).mean() / np.abs(expected).mean()
    assert 0 < error < 0.05


def test_batch_size_changes_nothing(model, images, tmp_path):
    for batch in (1, 4):
        extraction.extract(model, images[0][0], [Part(tmp_path / f"{batch}.npy", range(4))], 3, batch=batch)
    a, b = (np.load(tmp_path / f"{batch}.npy").astype(float) for batch in (1, 4))
    np.testing.assert_allclose(a, b, atol=2e-3)


def changed(**values):
    """A ViT whose third block writes these numbers into dimension 3, by its bias or as a factor of its weights."""
    model = vit.load("vit_tiny_patch16_224", "random", 32)
    last = model.blocks[2].mlp.fc2
    last.bias[3] = values.get("bias", 0)
    last.weight[3] *= values.get("factor", 1)
    return model


@pytest.mark.parametrize(("bias", "dtype", "text"), [
    (float("nan"), "float32", "gives nan, not a number below 1e+15; check the model's weights"),
    (float("inf"), "bfloat16", "gives nan, not a number below 1e+15; set extraction.dtype to float32"),
    (1e20, "float32", "gives 1e+20, not a number below 1e+15; check the model's weights"),
])  # fmt: skip
def test_activations_that_cannot_be_computed_with_are_refused(images, tmp_path, bias, dtype, text):
    paths, manifest, _ = images
    broken = changed(bias=bias)
    with pytest.raises(InputError) as error:
        part = Part(tmp_path / "x.npy", range(4))
        extraction.extract(broken, paths[0], [part], 3, dtype=dtype, names=["a/b.png", *"cde"])
    assert str(error.value) == f"layer 3, activations: image a/b.png {text}"
    assert not list(tmp_path.iterdir())  # nothing half-written is left
    if dtype == "float32" and not np.isfinite(bias):
        with pytest.raises(InputError, match=r"^outputs of the model: image cat/0.png gives nan"):
            extraction.reference(broken, paths, manifest, [1, 3])


def test_drawn_tokens_are_those_of_the_whole_images(model, images, tmp_path):
    paths, manifest, _ = images
    rows = manifest.loc[5:].assign(split=["train", "held_out", "train", "train", "held_out"])
    out, found = tmp_path / "train=1.npy", []
    extraction.extract(model, paths[1], [Part(tmp_path / "full.npy", rows["id"])], 3)
    for seed in (0, 1):
        parts = limited(rows, np.array([6, 8, 2]), np.arange(1, 5), 3, seed, tmp_path / "shard=1.npy", out)
        extraction.extract(model, paths[1], parts, 3, batch=2)
        full, whole, tokens = (np.load(tmp_path / name) for name in ("full.npy", "shard=1.npy", "train=1.npy"))
        facts = read_json(out.with_suffix(".json"))
        places = np.array(facts["places"])
        assert facts["ids"] == [5, 7, 8] and tokens.shape == (3, 3, 192) and places.min() > 0
        assert all(len({*row}) == 3 and sorted(row) == row for row in facts["places"])
        np.testing.assert_array_equal(tokens, full[np.array([0, 2, 3])[:, None], places])
        np.testing.assert_array_equal(whole, full[[1, 3]])
        x = Activations.open([out], "patches", [5, 8])
        assert x.tokens == 3
        np.testing.assert_array_equal(x.read(np.arange(2)), tokens[[0, 2]])
        assert Activations.open([tmp_path / "shard=1.npy"], "class").ids.tolist() == [6, 8]
        found.append(places)
    assert (found[0] != found[1]).any()
    _, everything = limited(rows, np.array([6]), np.arange(1, 5), 99, 0, out, out)
    assert everything.places is not None and everything.places.tolist() == [[1, 2, 3, 4]] * 3


def test_drawn_tokens_beyond_float16_make_both_files_float32(images, tmp_path):
    paths, manifest, _ = images
    rows = manifest.loc[:3].assign(split="train")
    parts = limited(rows, np.array([2]), np.arange(5), 2, 0, tmp_path / "shard=0.npy", tmp_path / "train=0.npy")
    extraction.extract(changed(factor=1e9), paths[0], parts, 3, batch=2)
    for name, shape in (("shard=0", (1, 5, 192)), ("train=0", (4, 2, 192))):
        stored = np.load(tmp_path / f"{name}.npy")
        assert stored.dtype == np.float32 and stored.shape == shape
        check(tmp_path / f"{name}.npy", read_json(tmp_path / f"{name}.json")["sha256"])


def test_layers_there_are_not_are_refused(model, images, tmp_path):
    with pytest.raises(InputError, match=r"layer 12: this model has blocks 0\.\.11"):
        extraction.extract(model, images[0][0], [Part(tmp_path / "nan.npy", range(4))], 12)


def test_activations_beyond_float16_are_stored_as_float32(images, tmp_path, capsys):
    huge, (paths, _, pixels) = changed(factor=1e9), images
    for i, path in enumerate(paths):
        ids = range(4 * i, 4 * i + len(np.load(path)))
        extraction.extract(huge, path, [Part(tmp_path / f"shard={i}.npy", ids)], 3, batch=2)
    assert "layer 3: activations exceed float16's range; stored as float32" in capsys.readouterr().err
    stored = np.concatenate([np.load(tmp_path / f"shard={i}.npy") for i in range(2)])
    assert stored.dtype == np.float32 and np.abs(stored).max() > 1e5
    np.testing.assert_allclose(stored, exact(huge, pixels), rtol=1e-3, atol=1e-3)


def test_half_of_a_layer_may_be_float32(model, images, tmp_path):
    paths, _, pixels = images
    extraction.extract(model, paths[0], [Part(tmp_path / "shard=0.npy", range(4))], 3)
    extraction.extract(changed(bias=1e5), paths[1], [Part(tmp_path / "shard=1.npy", range(4, 9))], 3)
    x = Activations.open([tmp_path / f"shard={i}.npy" for i in range(2)], "all")
    assert [np.load(tmp_path / f"shard={i}.npy").dtype for i in range(2)] == [np.float16, np.float32]
    read = x.read(np.arange(9))
    assert read.dtype == np.float32 and (read[4:, :, 3] > 9e4).all()
    np.testing.assert_allclose(read[:4], exact(model, pixels[:4]), rtol=2e-3, atol=2e-3)
    rows = np.concatenate(list(x.shuffled(7, np.random.default_rng(0))))
    np.testing.assert_array_equal(np.sort(rows[:, 3]), np.sort(read[:, :, 3].ravel()))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_the_reference_is_one_pass_of_the_whole_model(images, name):
    paths, manifest, pixels = images
    model = vit.load(name, "random", 32)
    passed, read = [], []
    handle = model.blocks[0].register_forward_hook(lambda _module, inputs, _output: passed.append(len(inputs[0])))
    found = extraction.reference(model, paths, manifest, [1, 3, 9], batch=3)
    handle.remove()
    assert sum(passed) == len(pixels)
    handle = model.head.register_forward_hook(lambda _module, inputs, _output: read.append(inputs[0]))
    with torch.no_grad():
        expected = model(vit.normalise(model)(pixels)).numpy()
    handle.remove()
    np.testing.assert_allclose(found["logits"], expected[[1, 3, 8]], rtol=1e-4, atol=1e-5)
    if name.startswith("vit"):  # the distilled model has two heads, and the mean of their inputs as features
        np.testing.assert_allclose(found["features"], read[0].numpy(), rtol=1e-4, atol=1e-5)
    assert found["features"].shape == (9, 192) and found["features"].dtype == np.float32
    np.testing.assert_array_equal(found["thumbnails"], extraction.thumbnails(pixels))
    with pytest.raises(InputError, match="image 4"):
        extraction.reference(model, paths, manifest, [3, 4])


def test_of_very_many_images_the_reference_reads_a_sample(model, images, monkeypatch):
    paths, manifest, pixels = images
    monkeypatch.setattr("sae.images.manifest.MOST_RANKED", 3)
    rows = ranked(manifest, [1, 9])["id"].tolist()
    assert {1, 9} <= {*rows} and len(rows) < 6
    places = [i - (i > 4) for i in rows]  # image 4 is not used
    found = extraction.reference(model, paths, manifest, [1, 9])
    np.testing.assert_array_equal(found["thumbnails"], extraction.thumbnails(pixels[places]))
    assert len(found["logits"]) == 2
    everything = extraction.embed(model, paths, manifest, np.delete(range(10), 4), batch=4)
    assert len(everything) == 9
    np.testing.assert_allclose(found["features"], everything[places], rtol=1e-4, atol=1e-5)


def test_the_models_facts_hold_its_shape_classes_and_accuracy(model, images):
    logits = np.zeros((3, 1000), np.float32)
    logits[:2, 281] = 1  # n02123045
    facts = extraction.describe(model, images[1], [0, 1, 5], logits)
    assert facts["accuracy"] == {"label": pytest.approx(2 / 3)} and facts["known_labels"] == {"label": 3}
    assert facts["ids"] == [0, 1, 5] and facts["geometry"]["patches"] == (2, 2)
    assert facts["class_names"]["label"][281] == "n02123045"


def test_another_models_size_is_met_by_resizing(images):
    paths, manifest, pixels = images
    other = vit.load("vit_tiny_patch16_224", "random", 48)
    found = extraction.embed(other, paths, manifest, [1], batch=4)
    small = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(small, (48, 48), mode="bilinear", antialias=True)
    with torch.no_grad():  # this model's mean and standard deviation are 0.5
        expected = other.forward_head(other.forward_features((resized / 255 - 0.5) / 0.5), pre_logits=True)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_thumbnails_are_means_of_cells():
    pixels = np.random.default_rng(5).integers(0, 256, (7, 16, 24, 3), np.uint8)
    expected = pixels.reshape(7, 8, 2, 8, 3, 3).mean((2, 4)) / 255
    found = extraction.thumbnails(pixels)
    assert found.shape == (7, 192) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2).reshape(7, -1), atol=1e-6)
    uneven = np.random.default_rng(6).integers(0, 256, (2, 30, 37, 3), np.uint8)
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(uneven).permute(0, 3, 1, 2).double() / 255, 8)
    np.testing.assert_allclose(extraction.thumbnails(uneven), pooled.flatten(1).numpy(), atol=1e-6)
