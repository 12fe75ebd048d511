"""Real weights and photographs, where the environment variable SAE_REAL_DATA names a folder that has them:
deit_tiny_patch16_224.safetensors and images/<synset>/*.jpg."""

import os
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch

from sae import extraction, images, vit
from sae.images.pixels import decode
from sae.shards import Part
from sae.store import Activations

REAL = Path(os.environ.get("SAE_REAL_DATA", "/nonexistent"))
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="SAE_REAL_DATA does not name a folder of real data")


def test_deit_recognises_photographs_and_still_does_when_resumed_from_stored_tokens(tmp_path):
    manifest = conftest.manifest(REAL / "images", held_out=0.1)
    assert (manifest["status"] == "ok").all()
    manifest = images.used(manifest, images.HELD_OUT)
    model = vit.load("deit_tiny_patch16_224", REAL / "deit_tiny_patch16_224.safetensors")
    decode(manifest, REAL / "images", vit.pixel_transform(model), tmp_path / "pixels.npy", 1)
    ids = manifest["id"].tolist()
    clean = extraction.reference(model, [tmp_path / "pixels.npy"], manifest, ids)["logits"]
    facts = extraction.describe(model, manifest, ids, clean)
    assert facts["known_labels"] == {"label": len(ids)}
    assert facts["accuracy"]["label"] > 0.75  # 0.86 over all 1,000

    extraction.extract(model, tmp_path / "pixels.npy", [Part(tmp_path / "shard.npy", ids)], 6)
    x = Activations.open([tmp_path / "shard.npy"], "all")
    blocks = [vit.resume(model, torch.from_numpy(b).float(), 6) for _, b in x.blocks(50)]
    resumed = np.concatenate([b.numpy() for b in blocks])
    assert (resumed.argmax(1) == clean.argmax(1)).mean() > 0.98
