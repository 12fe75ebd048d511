"""Folders and names that nobody wants, and files made to do harm: each is used, refused with a reason, or inert."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CUT, ROOT, manifest, picture, snakemake
from hostile import NAMES, corners_of, fill

import sae
from sae import images, latent_codes, vit
from sae.errors import InputError
from sae.files import read_json, sha256, write_json, write_table
from sae.images.reading import read_image
from sae.store import Activations


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The folder, what must become of each path, and its manifest by path."""
    folder = tmp_path_factory.mktemp("hostile") / "pictures {x} 'n' \"$HOME\" é\n"
    kinds = fill(folder)
    return folder, kinds, manifest(folder, held_out=0.4).set_index("path")


def test_every_file_is_in_the_manifest_as_it_should_be(corpus):
    _folder, kinds, table = corpus
    assert len(kinds) >= 150
    assert set(table.index) == {path for path, kind in kinds.items() if kind.status}
    wrong = [
        (path, table.at[path, "status"], table.at[path, "reason"])
        for path, kind in kinds.items()
        if kind.status and (table.at[path, "status"] != kind.status or kind.reason not in table.at[path, "reason"])
    ]
    assert not wrong
    unused = table[table["status"] != "ok"]
    assert unused["reason"].str.fullmatch(r"[ -~]{5,200}").all(), unused["reason"].tolist()  # a short line, no more


def test_every_image_looks_as_a_person_sees_it(corpus):
    folder, kinds, table = corpus
    for path, kind in kinds.items():
        if kind.status == "ok":
            image = read_image(folder / path)
            assert image.mode == "RGB" and image.size == (table.at[path, "width"], table.at[path, "height"]), path
            assert np.abs(corners_of(image) - kind.corners).max() <= 12, (path, corners_of(image), kind.corners)


def test_a_log_of_it_has_one_line_for_each_file(corpus):
    lines = images.summary(corpus[2].reset_index()).split("\n")
    assert len(lines) == 22 and all(line.isprintable() for line in lines)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """The results of the whole workflow on these images, whose names are classes too; and its report."""
    work = tmp_path_factory.mktemp("work")
    config = {
        "name": "hostile_",
        "images": str(corpus[0]),
        "model": {"name": "vit_tiny_concepts"},
        "held_out": 0.4,
        "grid": {"layers": [2], "ks": [4], "baselines": ["pca"]},
        "sae": {"expansion": 0.5},
        "training": {"epochs": 1, "batch": 256},
        "ranking": {"support": 1},
        "evidence": {"latents": 2, "images": 1},
        "report": {"latents": 4, "images": 4},
    }
    done = snakemake(work, config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    told = snakemake(work, "--report", "report.html", config=config)
    assert told.returncode == 0 and "ERROR" not in told.stderr, told.stderr
    return work


def test_names_do_no_harm_in_figures_tables_and_pages(finished):
    results = finished / "results/hostile_"
    figures = list((results / "report").rglob("*.svg"))
    assert len(figures) > 8
    for path in figures:
        kinds = {element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()}
        assert not kinds & {"script", "img", "foreignObject", "a"}, path
    # The tables and pages hold numbers, and words of the project's own, alone: nothing that a spreadsheet would run.
    told = [*results.rglob("*.csv"), *results.rglob("*.html"), finished / "report.html"]
    assert len(told) >= 6
    for path in told:
        text = path.read_text()
        assert not [name for name in ("alert(1)", "=1+1", "@SUM", "$(id)", "{layer} {}") if name in text], path
        if path.suffix == ".csv":
            assert not re.search(r"(^|,)\"?[=+@\t]|(^|,)\"?-(?![\d.])", text, re.M), path
    assert (results / "explorer/index.html").read_text() == (ROOT / "sae/explorer/web/index.html").read_text()


def test_the_explorers_data_holds_names_as_text(finished):
    data = finished / "results/hostile_/explorer/data"
    for path in data.rglob("*.js"):
        name = path.relative_to(data).with_suffix("").as_posix()
        told = re.fullmatch(rf"parts\.take\({re.escape(json.dumps(name))},([ -~]*)\)\n", path.read_text())
        value = json.loads(told[1])  # nothing but JSON, in ASCII
        if name == "images":
            assert set(NAMES) <= set(value["attributes"]["label"]["names"])


def test_logs_can_be_shown_on_a_terminal(finished):
    for path in (finished / "results/hostile_/logs").rglob("*.log"):
        assert not re.search("[\0-\x08\x0b\x0c\x0e-\x1f\u2028\u202e]", path.read_text()), path


@pytest.mark.skipif(not CUT, reason="this machine gives no process a network of its own")
def test_the_workflow_runs_without_a_network_in_these_tests():
    ask = "import socket; print(socket.if_nameindex()); socket.create_connection(('192.0.2.1', 80), 1)"
    done = subprocess.run([*CUT, sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    assert done.stdout == "[(1, 'lo')]\n" and "Network is unreachable" in done.stderr


def test_a_folder_of_100_000_files(tmp_path):
    for i in range(6):
        picture(tmp_path / f"{i}.png", seed=i)
    for i in range(100_000):
        (tmp_path / f"x{i:06d}.png").touch()
    table = manifest(tmp_path, held_out=0.5)
    assert table["status"].value_counts().to_dict() == {"broken": 100_000, "ok": 6}
    assert images.summary(table).endswith("and 99980 more, see the manifest's column `reason`")


def test_a_folder_that_cannot_be_read_is_named(pets, monkeypatch):
    for _ in range(20):  # below a path that is longer than the system allows
        monkeypatch.chdir(pets) if Path.cwd() == ROOT else None
        os.mkdir("d" * 250)  # noqa: PTH102
        os.chdir("d" * 250)
    with pytest.raises(InputError, match="the folder cannot be read: File name too long; correct or remove it"):
        manifest(pets, held_out=0.5)


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "cat/../../secret.png", "x" * 5000, "a\0.png"])
def test_a_labels_csv_reaches_no_other_files(pets, tmp_path, path):
    picture(tmp_path / "secret.png")
    (tmp_path / "labels.csv").write_text(f"path,label\ncat/1.png,a\ndog/0.png,b\n{path},c\n")
    with pytest.raises(InputError, match=r"is no image of|are not in|cannot be read as CSV"):
        manifest(pets, tmp_path / "labels.csv")


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "cat/../../secret.png"])
def test_a_tampered_manifest_reaches_no_other_files(pets, tmp_path, path):
    table = manifest(pets, held_out=0.5)
    table.loc[0, ["path", "sha256"]] = [path, sha256(picture(tmp_path / "secret.png"))]
    write_table(tmp_path / "manifest.parquet", table)
    with pytest.raises(InputError, match="leads out of the folder of images; delete it and run again"):
        images.read_manifest(tmp_path / "manifest.parquet")


class Harm:
    """Pickled, it makes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pickles_are_not_run(tmp_path):
    harm = Harm(tmp_path / "harm")
    pickle.loads(pickle.dumps(harm))
    assert harm.path.exists()  # it would
    harm.path.unlink()
    plain, array = tmp_path / "plain", tmp_path / "shard.npy"
    plain.write_bytes(pickle.dumps(harm))
    torch.save({"cls_token": harm}, tmp_path / "zipped")
    torch.save({"model": harm}, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module")
    np.save(array, np.array([harm], object))
    write_json(array.with_suffix(".json"), {"ids": [0], "roles": [], "sha256": sha256(array)})
    for ending in ("pth", "safetensors", "bin"):
        for name in ("plain", "zipped", "legacy", "module"):
            with pytest.raises(InputError, match="code or whole objects, which are not run: save the model"):
                vit.load("vit_tiny_concepts", shutil.copy(tmp_path / name, tmp_path / f"copy.{ending}"))
    with pytest.raises(InputError, match="cannot be read as a shard"):
        Activations.open([array])
    for name, read in {"sae.safetensors": sae.load, latent_codes.NAME: sae.codes}.items():
        write_json(tmp_path / "sae.json", {})
        shutil.copy(plain, tmp_path / name)
        with pytest.raises(InputError, match="damaged"):
            read(tmp_path)
    assert not harm.path.exists()


def stored(length: int, **tensors: object) -> bytes:
    """Returns a safetensors file of one number, whose header is said to have `length` bytes (0: what it has)."""
    header = json.dumps({"__metadata__": {"version": "1", "latents": "5", "tokens": "3"}, **tensors}).encode()
    return (length or len(header)).to_bytes(8, "little") + header + bytes(8)


ABSURD = {
    "a header of exabytes": stored(2**62),
    "a header longer than the file": stored(10_000),
    "a shape of exabytes": stored(0, W_enc={"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 8]}),
    "a shape that overflows": stored(0, W_enc={"dtype": "F32", "shape": [2**33, 2**31], "data_offsets": [0, 0]}),
    "a negative shape": stored(0, W_enc={"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}),
    "places outside": stored(0, W_enc={"dtype": "F32", "shape": [2], "data_offsets": [2**40, 2**40 + 8]}),
    "no such type": stored(0, W_enc={"dtype": "object", "shape": [1], "data_offsets": [0, 8]}),
}


@pytest.mark.parametrize("content", ABSURD.values(), ids=ABSURD)
def test_absurd_safetensors_are_refused(tmp_path, content, monkeypatch):
    monkeypatch.setattr("sae.files.check", lambda _path: None)  # whoever writes such a file writes its checksum too
    write_json(tmp_path / "sae.json", {})
    for name in ("sae.safetensors", latent_codes.NAME):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="the file is damaged"):
        sae.load(tmp_path)
    with pytest.raises(InputError, match="the file is damaged"):
        sae.codes(tmp_path)
    with pytest.raises(InputError, match="damaged or incomplete safetensors"):
        vit.load("vit_tiny_concepts", tmp_path / "sae.safetensors")


def test_an_sae_takes_no_memory_that_its_weights_do_not_have(tmp_path):
    from sae.autoencoder import SAEConfig, SparseAutoencoder

    SparseAutoencoder(SAEConfig(4, 8, 2)).save(tmp_path)
    facts = read_json(tmp_path / "sae.json")
    write_json(tmp_path / "sae.json", facts | {"latents": 10**12, "width": 10**6})
    with pytest.raises(InputError, match=r"does not fit sae\.json: W_enc has shape \(8, 4\)"):
        sae.load(tmp_path)


def test_codes_that_point_outside_their_matrix_are_refused(tmp_path):
    sparse = latent_codes.sparse.csr_array(np.eye(3, 5, dtype=np.float32))
    sparse.indices[1] = 2**30  # SciPy's compiled code would write there
    latent_codes.Codes(sparse, np.arange(3), 1).save(tmp_path, {})
    with pytest.raises(InputError, match=r"the file is damaged: .*; delete it and run measure again"):
        sae.codes(tmp_path)


def test_messages_about_odd_names_are_one_line(tmp_path):
    name = os.fsdecode(b"\xff\n\x1b[31m")
    with pytest.raises(InputError) as caught:
        manifest(tmp_path / name)
    assert str(caught.value).isprintable() and r"\n\x1b[31m" in str(caught.value)


def test_data_frames_are_no_way_around(tmp_path):
    """A manifest of another table, or of other kinds of values, ends with a line too."""
    for table in (pd.DataFrame({"id": [1]}), pd.DataFrame({"id": [0, 0], "path": ["a", "b"]})):
        write_table(tmp_path / "m.parquet", table)
        with pytest.raises(InputError, match=r"m\.parquet: cannot be read as a manifest: .*; delete it and run again"):
            images.read_manifest(tmp_path / "m.parquet")
