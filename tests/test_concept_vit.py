"""The ViT that is shipped with the project."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from sae import concept_vit, concepts, vit
from sae.files import sha256


def test_the_shipped_weights_are_those_of_the_record():
    facts = json.loads((concept_vit.FOLDER / "backbone.json").read_text())
    weights = concept_vit.FOLDER / f"{concept_vit.NAME}.safetensors"
    assert sha256(weights) == facts["sha256"]
    assert weights.stat().st_size <= 12e6
    assert min(facts["accuracy"].values()) >= 0.95
    assert set(facts["accuracy"]) == set(concepts.FACTORS)


def test_the_shipped_backbone_reads_off_every_factor():
    model = timm.create_model(concept_vit.NAME, pretrained=True).eval()
    recorded = json.loads((concept_vit.FOLDER / "backbone.json").read_text())["accuracy"]
    for factor, share in concept_vit.accuracy(model, 300).items():
        assert share >= 0.92, factor  # 300 images: at 0.95 and above, 0.92 is over two standard errors below
        assert share == pytest.approx(recorded[factor], abs=0.05)


def test_the_workflow_sees_the_backbone_as_any_timm_model():
    model = vit.load(concept_vit.NAME)
    assert vit.geometry(model).patches == (7, 7)
    assert vit.class_names(model) == {name: list(values) for name, values in concepts.FACTORS.items()}
    concept = concepts.draw(9, 1)
    pixels = vit.pixel_transform(model)(Image.fromarray(concept.image)).transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels, concept.image)  # nothing is resized or cropped


def test_training_learns_on_a_small_scale(tmp_path):
    facts = concept_vit.train(tmp_path, images=1600, batch=16, lr=1e-3, depth=1, held_out=100, seed=1)
    assert facts["accuracy"]["colour"] > 0.5  # chance: 1 in 8
    assert facts["sha256"] == sha256(tmp_path / f"{concept_vit.NAME}.safetensors")
    assert json.loads((tmp_path / "backbone.json").read_text()) == facts
    weights = tmp_path / f"{concept_vit.NAME}.safetensors"
    again = timm.create_model(concept_vit.NAME, depth=1, checkpoint_path=str(weights))
    assert concept_vit.accuracy(again, 100)["colour"] == pytest.approx(facts["accuracy"]["colour"], abs=0.03)
    assert all(p.dtype == torch.float32 for p in again.parameters())
