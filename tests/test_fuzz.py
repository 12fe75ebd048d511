"""Damaged, altered and made-up files: every reader returns something it can stand for, or names the fault.

Hypothesis draws the files, the same ones in every run. `FUZZ=100 pytest tests/test_fuzz.py` draws 100 times as many.
"""

import json
import os
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
import small
import torch
import yaml
from conftest import ROOT, manifest, picture
from hostile import exif, with_exif
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sae
from sae import autoencoder, files, images, latent_codes, store, vit
from sae.config import complete
from sae.errors import InputError
from sae.files import sha256, write_arrays, write_table
from sae.images.reading import inspect, read_image
from sae.store import Activations
from sae.training.checkpoint import Checkpoint

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def fuzz(examples: int):
    """Settings that make a test draw the same files in every run, without a limit of time."""
    most = examples * int(os.environ.get("FUZZ", 1))
    return settings(max_examples=most, derandomize=True, database=None, deadline=None, suppress_health_check=SLOW)


NUMBERS = st.integers(-3, 300) | st.sampled_from([2**31, 2**63, -(2**63), 10**30, True]) | st.floats()
LEAVES = NUMBERS | st.none() | st.booleans() | st.text(max_size=8)
KEYS = st.sampled_from(["", "a", "__proto__", "width", "0"]) | st.text(max_size=4)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=5)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with some bytes changed, doubled or cut off."""
    at = st.integers(0, len(content)) | st.integers(0, min(200, len(content)))  # headers stand at the beginning
    for _ in range(draw(st.integers(1, 4))):
        first, new = draw(at), draw(st.binary(max_size=8))
        content = content[:first] + new + content[first + draw(st.sampled_from([0, len(new), 1, 50])) :]
    return content[: draw(at)] if draw(st.booleans()) else content


@st.composite
def altered(draw: st.DrawFn, value: object) -> object:
    """The JSON value with something in it removed, replaced or added."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 5)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, changed = draw(st.sampled_from(keys)), value.copy()
        if draw(st.integers(0, 5)):
            changed[key] = draw(altered(value[key]))
        else:
            del changed[key]
        return changed
    return draw(VALUES)


@st.composite
def tensors(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes of a safetensors file, damaged, or with an altered header."""
    if draw(st.booleans()):
        return draw(damaged(content))
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(draw(altered(json.loads(content[8 : 8 + length])))).encode()
    size = draw(st.sampled_from([len(header), len(header) + 1, 2**62, 2**64 - 1, 0]) | st.just(len(header)))
    return size.to_bytes(8, "little") + header + content[8 + length :]


def read(function, *arguments):
    """Returns what the reader returns; None where it names a fault."""
    try:
        return function(*arguments)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return None


@pytest.fixture(autouse=True, scope="module")
def renewed_checksums():
    """Whoever writes a harmful file writes its checksum too."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (files, store):
            patch.setattr(module, "check", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def model(place):
    made = autoencoder.SparseAutoencoder(autoencoder.SAEConfig(6, 12, 2, method="batchtopk", input="layernorm"))
    made.save(place / "sae")
    return place / "sae"


@fuzz(100)
@given(data=st.data())
def test_saes(model, data):
    kept = {name: (model / name).read_bytes() for name in ("sae.json", "sae.safetensors")}
    try:
        if data.draw(st.booleans()):
            (model / "sae.safetensors").write_bytes(data.draw(tensors(kept["sae.safetensors"])))
        elif data.draw(st.booleans()):
            (model / "sae.json").write_text(json.dumps(data.draw(altered(json.loads(kept["sae.json"])))))
        else:
            (model / "sae.json").write_bytes(data.draw(damaged(kept["sae.json"])))
        if loaded := read(autoencoder.load, model):
            x = torch.zeros(3, loaded.config.width)
            assert loaded.decode(loaded.encode(x)).shape == x.shape
    finally:
        for name, content in kept.items():
            (model / name).write_bytes(content)


@pytest.fixture(scope="module")
def codes(place):
    z = np.maximum(np.random.default_rng(0).standard_normal((4, 3, 5)), 0)
    made = small.coded(z, error=np.zeros(4), tally=latent_codes.Tally.empty(5, 3))
    made.save(place / "codes", {})
    return place / "codes" / latent_codes.NAME


@fuzz(150)
@given(data=st.data())
def test_codes(codes, data):
    kept = codes.read_bytes()
    codes.with_name("other").mkdir(exist_ok=True)
    file = codes.with_name("other") / codes.name
    file.write_bytes(data.draw(tensors(kept)))
    if (loaded := read(sae.codes, file.parent)) and len(loaded.ids):
        assert loaded.z.tocsc().shape == (len(loaded.ids) * loaded.tokens, loaded.latents)
        with suppress(InputError):
            part = loaded.of(loaded.ids[:1])
            assert part.last(1).z.toarray().shape == (1, loaded.latents)
            part.patch_maps([(0, int(loaded.ids[0]))], (1, 1))


@fuzz(80)
@given(data=st.data())
def test_shards(place, data):
    file = place / "shard.npy"
    np.save(file, np.zeros((4, 3, 5), np.float16))
    facts = {"ids": [0, 1, 2, 3], "roles": ["class"], "sha256": sha256(file)}
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(damaged(file.read_bytes())))
        facts["sha256"] = sha256(file)
    else:
        facts = data.draw(altered(facts))
    file.with_suffix(".json").write_text(json.dumps({"checksum": ""} | facts if isinstance(facts, dict) else facts))
    if opened := read(Activations.open, [file], "all"):
        assert opened.read(np.arange(len(opened))).shape == (len(opened), opened.tokens, opened.width)


@fuzz(60)
@given(data=st.data())
def test_checkpoints(place, data):
    file = place / "run.safetensors"
    state = {"count": torch.tensor(3), "W": torch.zeros(2)}
    told = {"identity": {"seed": 0}, "progress": [1, 2]}
    write_arrays(file, {name: value.numpy() for name, value in state.items()}, told)
    file.write_bytes(data.draw(tensors(file.read_bytes())))
    read(Checkpoint(file, {"seed": 0}, 1).load)


@pytest.fixture(scope="module")
def listed(place):
    """A folder of images and its manifest."""
    for i in range(6):
        picture(place / "pets" / f"{i % 2}" / f"{i}.png", seed=i)
    return place / "pets", manifest(place / "pets", held_out=0.5)


@fuzz(100)
@given(data=st.data())
def test_manifests(place, listed, data):
    file = place / "manifest.parquet"
    write_table(file, listed[1], {})
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(damaged(file.read_bytes())))
    else:
        rows = data.draw(altered(listed[1].astype(object).where(listed[1].notna(), None).to_dict("list")))
        with suppress(Exception):  # most such tables cannot be written
            pd.DataFrame(rows).to_parquet(file)
    table = read(images.read_manifest, file)
    assert table is None or len(images.used(table)) <= len(table)


CELLS = st.text(max_size=6) | st.sampled_from(
    ["path", "label", "split", "0/0.png", "1/1.png", "train", "../x.png", "/etc/passwd", "x" * 300, "=1+1", "", '"']
)


@fuzz(100)
@given(
    rows=st.lists(st.lists(CELLS, max_size=4), max_size=5),
    separator=st.sampled_from([",", ";", "\t", ", "]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-32"]),
    head=st.sampled_from(["path,label\n0/0.png,a\n1/1.png,b\n", "", "path\n"]),
)
def test_labels(place, listed, rows, separator, end, encoding, head):
    file = place / "labels.csv"
    text = head.replace(",", separator) + end.join(separator.join(row) for row in rows)
    file.write_bytes(text.encode(encoding, "replace"))
    table = read(manifest, listed[0], file, 0.5)
    assert table is None or (len(table) == 6 and (table["status"] == "ok").any())


@fuzz(60)
@given(content=st.binary(max_size=60))
def test_labels_of_any_bytes(place, listed, content):
    (place / "labels.csv").write_bytes(content)
    read(manifest, listed[0], place / "labels.csv", 0.5)


ENTRY = st.tuples(
    st.sampled_from([0x0112, 0x010E, 0x8769, 0x8825, 0xA005, 0x011A, 0x0201]),
    st.integers(0, 14),
    st.sampled_from([0, 1, 2, 3, 70000, 2**32 - 1]),
    st.binary(max_size=12),
)


@fuzz(120)
@given(
    entries=st.lists(ENTRY, max_size=4),
    order=st.sampled_from("<>"),
    ending=st.sampled_from(["jpg", "png", "tif"]),
    data=st.data(),
)
def test_exif_and_images(place, entries, order, ending, data):
    file = picture(place / f"image.{ending}", seed=1)
    content = file.read_bytes()
    if ending == "jpg":
        content = with_exif(content, exif(*entries, order=order))
    file.write_bytes(data.draw(damaged(content)) if data.draw(st.booleans()) else content)
    row = inspect(file)
    assert row["status"] in ("ok", "broken", "huge") and (row["reason"] or row["status"] == "ok")
    if row["status"] == "ok":
        assert read_image(file).size == (row["width"], row["height"])


CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())


@fuzz(80)
@given(config=altered(CONFIG))
def test_configs(config):
    if isinstance(config, dict):  # Snakemake refuses all else
        read(complete, config, ROOT / "workflow/schemas/config.schema.yaml")


@fuzz(10)
@given(data=st.data())
def test_weights(place, data):
    file = place / "weights.safetensors"
    content = (ROOT / "sae/weights/vit_tiny_concepts.safetensors").read_bytes()
    file.write_bytes(data.draw(tensors(content)))
    read(vit.load, "vit_tiny_concepts", file)
