"""The package in a notebook: activations of any timm ViT, an SAE on them, and nothing of the workflow."""

import numpy as np
import pytest
import timm
import torch
from conftest import picture
from PIL import Image

import sae
from sae import vit as vits

VITS = {
    "vit_tiny_patch16_224": 32,
    "vit_small_patch14_reg4_dinov2": 28,
    "vit_base_patch16_siglip_224": 32,
    "eva02_tiny_patch14_224": 28,
    "deit_tiny_distilled_patch16_224": 32,
}


@pytest.mark.parametrize("name", VITS)
def test_activations_of_any_timm_vit_come_in_its_own_preprocessing(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=VITS[name])  # in training mode, as timm gives it
    model.blocks[0].eval()  # as people freeze a block
    files = [picture(tmp_path / f"{seed}.png", seed, (60, 40)) for seed in range(5)]
    found = sae.activations(model, files, layer=3, batch=2)
    assert (
        model.training
        and not model.blocks[0].training
        and model.blocks[1].training
        and found.dtype == torch.float32
        and not found.is_inference()
    )
    config = timm.data.resolve_model_data_config(model) | {"input_size": (3, VITS[name], VITS[name])}
    transform = timm.data.create_transform(**config, is_training=False)
    x = torch.stack([transform(Image.open(path).convert("RGB")) for path in files])
    model.eval()
    seen = {}
    with torch.no_grad(), vits.edit(model, 3, lambda tokens: seen.setdefault("tokens", tokens)):
        model(x)
    prefix = model.num_prefix_tokens
    torch.testing.assert_close(found, seen["tokens"][:, prefix:], rtol=1e-3, atol=1e-3)
    everything = sae.activations(model, x, layer=3, tokens="all")
    torch.testing.assert_close(everything, seen["tokens"], rtol=1e-4, atol=1e-4)
    images = [Image.open(path) for path in files]
    assert torch.equal(sae.activations(model, images, layer=3, batch=2), found)


def test_a_latent_is_found_and_its_ablation_moves_the_output(tmp_path):
    vit = sae.load_vit("vit_tiny_concepts")
    files = [picture(tmp_path / f"{seed}.png", seed, (112, 112)) for seed in range(12)]
    x = sae.activations(vit, files, layer=3)
    model = sae.train(x, sae.TrainConfig(k=8, latents=96, epochs=2, batch=128), device="cpu")
    z = model.encode(x)
    assert z.shape == (12, 49, 96) and model.decode(z).shape == x.shape
    rows = model.encode(x.flatten(0, 1))
    torch.testing.assert_close(z.flatten(0, 1), rows)
    assert np.array_equal(model.encode(x.numpy()), z.numpy())
    images = sae.extraction._pixels_of(vit)(files)
    with torch.no_grad():
        clean = vit(images)
        with sae.splice(vit, 3, model, ablate=[int(z.sum((0, 1)).argmax())], keep_error=True):
            assert (vit(images) - clean).abs().max() > 0.01


@pytest.mark.parametrize(
    ("images", "layer", "told"),
    [
        ("pets", 3, "need a list"),
        (np.zeros((2, 3, 32, 32), np.float32), 3, r"ndarray of shape \(2, 3, 32, 32\): need files"),
        (torch.zeros(3, 32, 32), 3, r"Tensor of shape \(3, 32, 32\): need files"),
        (["nowhere.png"], 3, r"nowhere\.png: cannot be read as an image"),
        (["broken.png"], 3, r"broken\.png: cannot be read as an image"),
        ([Image.new("RGB", (40, 40))], 12, r"layer 12: this model has blocks 0\.\.11"),
    ],
)
def test_wrong_images_and_layers_are_told(images, layer, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    model = vits.load("vit_tiny_patch16_224", "random", 32)
    with pytest.raises(sae.InputError, match=told):
        sae.activations(model, images, layer)


def test_a_model_that_is_no_plain_vit_is_refused():
    with pytest.raises(sae.InputError, match="not a plain Vision Transformer"):
        sae.activations(timm.create_model("resnet18"), [Image.new("RGB", (40, 40))], 3)


def test_every_public_name_is_there_and_told():
    for name in sae.__all__:
        assert getattr(sae, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        sae.nothing  # noqa: B018
