"""ViTs, dictionaries and codes for the tests of effects: planted causes, and a random model's own tokens."""

import numpy as np
import pandas as pd
import small
import torch

from sae import vit as vits
from sae.autoencoder import SAEConfig, SparseAutoencoder
from sae.store import Activations

IMAGES = 12


def store(tokens):
    """Wraps an array [images, tokens, d] as the activations of images 100, 101, …"""
    n = np.arange(len(tokens))
    return Activations([tokens], n + 100, np.stack([0 * n, n], 1), slice(None))


def clean(vit, sae, x):
    """Returns the ViT's outputs for the stored tokens."""
    return vits.resume(vit, torch.from_numpy(x.read(np.arange(len(x)))).float(), sae.config.layer).numpy()


def planted(seed=0):
    """A head of 37 orthogonal directions behind the last block, a latent for each, on random class tokens."""
    model = vits.load("vit_tiny_concepts", "random")
    geometry, rng = vits.geometry(model), np.random.default_rng(seed)
    head = np.linalg.qr(rng.standard_normal((geometry.width, geometry.outputs)))[0].T
    model.head.weight.data = torch.from_numpy(head * 3).float()
    settings = SAEConfig(geometry.width, geometry.outputs, 8, layer=geometry.blocks - 1, tokens="class")
    sae = SparseAutoencoder(settings, scale=2.0).requires_grad_(False)
    sae.W_dec[:] = torch.from_numpy(head * rng.uniform(0.5, 2, (len(head), 1)))
    x = store(rng.standard_normal((40, len(geometry.roles), geometry.width)).astype(np.float16))
    z = rng.uniform(1, 3, (40, geometry.outputs)) * (rng.random((40, geometry.outputs)) < 0.3)
    codes = small.coded(z[:, None], x.ids)
    names = [(group, value) for group, values in vits.class_names(model).items() for value in values]
    classes = pd.DataFrame(names, columns=["attribute", "class"]).assign(latent=range(len(names)))
    return model, sae, x, codes, classes


def real(name="vit_tiny_patch16_224", side=48, layer=2, **head):
    """A random model's own tokens of random images, and a random SAE with 24 latents on its patches."""
    model = vits.load(name, "random", side)
    if head:
        model.reset_classifier(**head)
        model.num_classes = head["num_classes"]
        model.pretrained_cfg = {}
    geometry = vits.geometry(model)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, *geometry.side, 3), np.uint8)
    images = vits.normalise(model)(pixels)
    with torch.inference_mode():
        tokens = vits.read(model, images, layer).half().numpy()
    x = store(tokens)
    torch.manual_seed(0)
    own = tokens[:, len(geometry.prefix) :]
    mean = torch.from_numpy(own.astype(np.float32).mean((0, 1)))
    sae = SparseAutoencoder(SAEConfig(x.width, 24, 3, layer=layer), mean, scale=0.5).requires_grad_(False)
    sae.W_enc.normal_()
    sae.W_dec.normal_(std=0.3)
    with torch.no_grad():
        z = sae.encode(torch.from_numpy(own.reshape(-1, x.width)).float()).numpy()
    codes = small.coded(z.reshape(*own.shape[:2], -1), x.ids)
    return model, sae, x, codes, images
