"""A config that asks for more than the ViT or the images have is refused before the jobs that take long."""

import pytest
from conftest import ROOT, picture, snakemake

from sae.config import complete
from sae.errors import InputError
from sae.feasibility import check
from sae.geometry import Geometry

VIT = Geometry(blocks=6, width=192, prefix=("class",), patches=(7, 7), side=(56, 56), outputs=0)
NO_CLASS = Geometry(blocks=6, width=192, prefix=(), patches=(7, 7), side=(56, 56), outputs=0)


def config(**changes):
    least = {"name": "x", "images": "pets", "grid": {"layers": [5], "ks": [4]}, "sae": {"expansion": 1}}
    least["training"] = {"batch": 64}
    return complete({**least, **changes}, ROOT / "workflow/schemas/config.schema.yaml")


@pytest.mark.parametrize(
    ("changes", "images", "message"),
    [
        ({"grid": {"layers": [0, 6], "ks": [4]}}, None, r"layer 6: this model has blocks 0\.\.5"),
        ({"grid": {"layers": [0], "ks": [4, 193]}}, None, r"grid\.ks: 193 active latents of 192"),
        ({"sae": {"expansion": 0.001}}, None, r"grid\.ks: 4 active latents of 0"),
        (
            {"training": {"precision": "int8"}, "grid": {"layers": [0], "ks": [4], "methods": ["topk", "relu"]}},
            None,
            "int8 is not possible for relu",
        ),
        ({"training": {"batch": 491}}, 10, r"training\.batch: 491 tokens per step, .* have 490 tokens"),
        ({"training": {"batch": 11, "whole_images": True}}, 10, r"training\.batch: 11 images per step"),
        ({"tokens": "class", "training": {"batch": 11}}, 10, r"training\.batch: 11 tokens per step"),
        ({"sae": {"expansion": 3}}, 10, r"kmeans needs as many tokens as latents, 576, .* have 490"),
        ({"sae": {"expansion": 3}, "grid": {"layers": [0], "ks": [4], "baselines": ["sampled"]}}, 10, "sampled needs"),
    ],
)
def test_more_than_there_is_is_refused(changes, images, message):
    with pytest.raises(InputError, match=message):
        check(config(**changes), VIT, images)


def test_what_is_possible_passes():
    check(config(), VIT)
    check(config(training={"batch": 490}, grid={"layers": [0, 5], "ks": [192]}), VIT, 10)
    check(config(sae={"expansion": 3}, grid={"layers": [0], "ks": [4], "baselines": ["pca", "random"]}), VIT, 10)
    with pytest.raises(InputError, match="no class token"):
        check(config(tokens="class"), NO_CLASS)


def test_it_is_said_before_an_image_is_decoded(tmp_path):
    for i in range(12):
        picture(tmp_path / f"pets/{i}.png", seed=i)
    mine = {"name": "x", "images": str(tmp_path / "pets"), "model": {"checkpoint": "random"}}
    mine["grid"] = {"layers": [0], "ks": [500], "baselines": []}
    done = snakemake(tmp_path / "work", config=mine | {"sae": {"expansion": 1}})
    assert done.returncode == 1 and "error: config key grid.ks: 500 active latents of 192" in done.stderr
    assert [path.suffix for path in (tmp_path / "work/results").rglob("*") if path.is_file()] == [".log"]
    done = snakemake(tmp_path / "work", config=mine | {"sae": {"expansion": 4}, "held_out": 0.4})
    assert done.returncode == 1 and "error: config key training.batch: 4096 tokens per step" in done.stderr
    assert not (tmp_path / "work/results/x/pixels").exists()
