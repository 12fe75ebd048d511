"""Files of weights: read by their content whatever their ending, without running anything in them."""

import gzip
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae.errors import InputError
from sae.weight_files import read, timm_name

WEIGHTS = {"a.weight": torch.arange(2000.0), "b.bias": torch.ones(2)}


def saved(path, content=WEIGHTS, **how):
    torch.save(content, path, **how)
    return path


@pytest.mark.parametrize("ending", ["safetensors", "pth", "bin", "ckpt"])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_the_content_decides_and_not_the_ending(tmp_path, kind, ending):
    path = tmp_path / f"weights.{ending}"
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        saved(path, _use_new_zipfile_serialization=kind == "zip")
    found = read(path)
    assert found.keys() == WEIGHTS.keys() and torch.equal(found["a.weight"], WEIGHTS["a.weight"])


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda w: {"epoch": 3, "state_dict": w, "optimizer": {"x": torch.ones(3)}}, "model."),  # Lightning
        (lambda w: {"model": w, "model_ema": w, "args": [1]}, "module."),
        (lambda w: {"teacher": w, "student": w}, "backbone."),  # DINO
        (lambda w: {"checkpoint": 1, "model": {"state_dict": w}}, "module.vit."),
        (lambda w: w | {"note": "text"}, "_orig_mod."),
    ],
)
def test_weights_inside_a_checkpoint_are_found(tmp_path, wrap, prefix):
    content = wrap({prefix + name: value for name, value in WEIGHTS.items()})
    assert read(saved(tmp_path / "x.pth", content)).keys() == WEIGHTS.keys()


def files(folder):
    """Makes files that are no weights; returns name -> the words that must be said of it."""
    whole, safe = saved(folder / "whole").read_bytes(), folder / "safe"
    legacy = saved(folder / "legacy", _use_new_zipfile_serialization=False).read_bytes()
    save_file(WEIGHTS, safe)
    contents = {
        "empty": (b"", "an empty file"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        "page": (b"\n <!DOCTYPE html><html>", "a web page"),
        "json": (b'{"error": "not found"}', "a text file"),
        "keras": (b"\x89HDF\r\n\x1a\n" + bytes(90), "HDF5"),
        "gguf": (b"GGUF" + bytes(90), "GGUF"),
        "packed": (gzip.compress(whole), "unpack it"),
        "half": (whole[: len(whole) // 2], "incomplete PyTorch file: download it again"),
        "half-safe": (safe.read_bytes()[:5000], "incomplete safetensors file: download it again"),
        "header": ((2**62).to_bytes(8, "little") + b'{"a":1}', "damaged or incomplete safetensors"),
        "half-legacy": (legacy[: len(legacy) // 2], "neither safetensors nor a PyTorch file"),
        "noise": (np.random.default_rng(0).bytes(3000), "neither safetensors nor a PyTorch file"),
        "zeros": (bytes(3000), "neither safetensors nor a PyTorch file"),
        "text": (b"hello", "neither safetensors nor a PyTorch file"),
    }
    for name, (content, _words) in contents.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    saved(folder / "numbers", {"epoch": 3, "lr": 0.1})
    saved(folder / "tensor", torch.ones(3))
    saved(folder / "list", [WEIGHTS])
    (folder / "folder").mkdir()
    others = {
        "zip": "a zip archive, not PyTorch's",
        "numbers": "entries epoch, lr, not weights",
        "tensor": "not weights",
        "list": "not weights",
        "folder": "a folder",
        "missing": "no such file",
    }
    return {name: words for name, (_content, words) in contents.items()} | others


def test_what_is_no_weights_is_named_in_one_line(tmp_path):
    for name, words in files(tmp_path).items():
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(f"checkpoint {tmp_path / name}: "), name
        assert words in message and "\n" not in message, message


@pytest.mark.parametrize("prefix", ["", "timm/", "hf-hub:timm/", "hf_hub:timm/", "https://huggingface.co/timm/"])
def test_names_as_hubs_spell_them(prefix):
    assert timm_name(f"{prefix}vit_tiny_patch16_224.augreg_in21k") == "vit_tiny_patch16_224.augreg_in21k"
    assert timm_name("hf-hub:someone/timm-vit") == "hf-hub:someone/timm-vit"
