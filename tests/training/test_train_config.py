"""The config of a training run: every field is described, unknown values are refused."""

from dataclasses import fields

import pytest
import yaml
from conftest import ROOT

import sae
from sae.autoencoder import METHODS
from sae.errors import InputError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 65}, "k 65: must lie between 1 and the number of latents, 64"),
        ({"k": 0}, "k 0"),
        (
            {"method": "magic"},
            f"method magic: must be one of {', '.join(METHODS)}, frozen",
        ),
        ({"method": "pca"}, "method pca"),
        ({"input": "raw"}, "input raw: must be one of standardised, layernorm"),
        ({"decoder": "tied"}, "decoder tied"),
        ({"start": "pca"}, "start pca"),
        ({"precision": "fp8"}, "precision fp8"),
        ({"epochs": 0}, "epochs 0"),
        ({"batch": 0}, "batch 0"),
    ],
)
def test_unknown_values_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        sae.TrainConfig(**{"k": 4, "latents": 64} | change)


def test_help_describes_every_field():
    for kind in (sae.TrainConfig, sae.Source):
        assert all(f"        {field.name}: " in kind.__doc__ for field in fields(kind))


def test_it_takes_the_sections_of_the_config_as_they_are():
    rules = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())["properties"]
    known = {field.name for field in fields(sae.TrainConfig)}
    assert set(rules["sae"]["properties"]) - {"expansion"} | set(rules["training"]["properties"]) <= known


def test_frozen_means_a_frozen_decoder():
    assert sae.TrainConfig(4, 64, "frozen").decoder == "frozen"
