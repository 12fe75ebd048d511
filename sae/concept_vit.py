"""The small ViT shipped with the project: a timm model, trained to classify the built-in concepts.

`timm.create_model("vit_tiny_concepts", pretrained=True)` works once this module is imported. It is ViT-Tiny/16
(192 wide, 3 heads) with 6 of its 12 blocks, on 112-pixel images. Its head holds a softmax per factor, side by side:
output `label_names[i]` is "factor: value". `train` made the weights; backbone.json beside them records the settings and
the accuracy.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tqdm import tqdm

from sae import concepts
from sae.files import sha256
from sae.light_timm import timm

VisionTransformer = timm.models.VisionTransformer

FOLDER = Path(__file__).parent / "weights"
NAME = "vit_tiny_concepts"
LABEL_NAMES = tuple(f"{factor}: {value}" for factor, values in concepts.FACTORS.items() for value in values)
_FIRST_TRAINING_SEED = 2**31  # experiments draw with small seeds: they never meet an image of the training
_HELD_OUT_SEED = 2**30
_EASY = {"texture": "solid", "background": "plain", "objects": "one"}
_SILHOUETTE = 8  # the side of the silhouettes to be drawn, cells
_CELLS = 4  # the cells that a patch is cut into, along each side, where it must tell what covers it

default_cfgs = timm.models.generate_default_cfgs(
    {
        NAME: {
            "file": str(FOLDER / f"{NAME}.safetensors"),
            "input_size": (3, concepts.SIDE, concepts.SIDE),
            "crop_pct": 1.0,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "num_classes": len(LABEL_NAMES),
            "label_names": LABEL_NAMES,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "mit",
        }
    }
)


@timm.models.register_model
def vit_tiny_concepts(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-Tiny/16 for the built-in 112-pixel concepts."""
    shape = {"img_size": concepts.SIDE, "patch_size": 16, "embed_dim": 192, "depth": 6, "num_heads": 3}
    return timm.models.vision_transformer._create_vision_transformer(NAME, pretrained=pretrained, **(shape | kwargs))


def train(
    folder: Path,
    images: int,
    seed: int = 0,
    batch: int = 16,
    lr: float = 1e-3,
    held_out: int = 4000,
    device: str | torch.device = "cpu",
    **architecture: Any,
) -> dict:
    """Trains the backbone from scratch and writes its weights (fp16) and backbone.json into `folder`.

    Every step draws new images. The head predicts all factors from the class token and, as in token labelling (Jiang et
    al. 2021, arXiv 2104.10858), from every patch token on the main object. Further linear maps, which only training
    uses, predict two more targets: from every patch token, the parts of the patch that show the main object and the
    companion; from the class token and the object's patches, the object's silhouette, centred and scaled. Without the
    silhouette, accuracy stays at chance for long. About twenty supervised tokens per image in place of one save most of
    the images. At first all images are easy (one solid object on a plain background); their share falls to 0 over the
    first 25 % of the steps. AdamW, warm-up over 5 % of the steps, then linear decay to 0.

    Args:
        folder: where vit_tiny_concepts.safetensors and backbone.json go.
        images: number of train images; training takes `images // batch` steps.
        held_out: number of images, never used in training, on which the accuracies are measured.
        architecture: changes to the architecture (`depth=2`, …), for trials.

    Returns:
        the content of backbone.json: the settings, the held-out accuracy per factor, the SHA-256 of the weights.
    """
    torch.manual_seed(seed)
    model = timm.create_model(NAME, **architecture)
    assert isinstance(model, VisionTransformer)
    _start(model, seed)
    model.to(device)
    segment = torch.nn.Linear(model.embed_dim, 2 * _CELLS**2, device=device)
    outline = torch.nn.Linear(model.embed_dim, _SILHOUETTE**2, device=device)
    parameters = [*model.parameters(), *segment.parameters(), *outline.parameters()]
    decayed = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)
    steps, start = images // batch, time.perf_counter()
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / (0.05 * steps), 1.0) * (1 - step / steps)
    )
    progress = tqdm(range(steps), desc="backbone", unit="step", mininterval=10)
    for step in progress:
        easy = round(batch * max(0.0, 1 - step / (0.25 * steps)))
        x, targets, cover, silhouette = _draw_batch(
            _FIRST_TRAINING_SEED + seed, step * batch, batch, model, device, easy
        )
        tokens = model.forward_features(x)
        class_loss = _loss(model.head(tokens[:, 0]), targets)
        patches = tokens[:, model.num_prefix_tokens :]
        main = cover[:, :, 0].mean(2)  # share of each patch, [n, patches]
        image, patch = (main >= main.amax(1, keepdim=True) / 2).nonzero(as_tuple=True)
        patch_loss = _loss(model.head(patches[image, patch]), targets[image])
        mask_loss = F.binary_cross_entropy_with_logits(segment(patches), cover.flatten(2))
        outline_loss = F.binary_cross_entropy_with_logits(outline(tokens[:, 0]), silhouette)
        outline_loss += F.binary_cross_entropy_with_logits(outline(patches[image, patch]), silhouette[image])
        optimiser.zero_grad()
        (class_loss + patch_loss + 10 * mask_loss + 5 * outline_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % max(1, steps // 40) == 0:
            seen = accuracy(model, min(500, held_out), device)
            values = " ".join(f"{name} {value:.2f}" for name, value in seen.items())
            progress.write(f"step {step + 1}: loss {class_loss:.3f} held out: {values}")
            _save(model, folder)

    path = _save(model, folder)
    facts = {
        "model": NAME,
        "architecture": architecture,
        "parameters": sum(p.numel() for p in model.parameters()),
        "images": steps * batch,
        "batch": batch,
        "lr": lr,
        "seed": seed,
        "held_out_images": held_out,
        "accuracy": accuracy(model, held_out, device),
        "seconds": round(time.perf_counter() - start),
        "torch": torch.__version__,
        "device": str(device),
        "sha256": sha256(path),
    }
    (folder / "backbone.json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


@torch.no_grad()
def _start(model: VisionTransformer, seed: int) -> None:
    """Gives the embeddings a start from which a small budget suffices.

    Positions: sines and cosines (Beyer et al. 2022, arXiv 2205.01580); with timm's own start, σ = 0.02, position stays
    at chance for tens of thousands of images. Patches: the whitened principal components of drawn patches, as the
    first layer of fast CIFAR networks (Jordan 2024, arXiv 2404.00498); otherwise brightness drowns the textures.
    """
    grid = timm.layers.build_sincos2d_pos_embed(model.patch_embed.grid_size, model.embed_dim, temperature=100)
    assert model.pos_embed is not None
    model.pos_embed[0, model.num_prefix_tokens :] = 0.5 * grid
    x, *_ = _draw_batch(_FIRST_TRAINING_SEED + seed, 0, 1000, model, "cpu")
    size = model.patch_embed.patch_size[0]
    patches = F.unfold(x, size, stride=size).transpose(1, 2).flatten(0, 1)  # [n, 3·size²]
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    strongest = slice(-model.embed_dim, None)
    weight = (vectors[:, strongest] / (values[strongest] + 0.01).sqrt()).T * 0.5
    model.patch_embed.proj.weight.copy_(weight.reshape(model.patch_embed.proj.weight.shape))
    model.patch_embed.proj.bias.copy_(-weight @ patches.mean(0))


@torch.inference_mode()
def accuracy(model: VisionTransformer, images: int, device: str | torch.device = "cpu") -> dict[str, float]:
    """Returns the accuracy on held-out images from the class token, per factor."""
    model.eval()
    right = torch.zeros(len(concepts.FACTORS))
    for first in range(0, images, 100):
        count = min(100, images - first)
        x, targets, *_ = _draw_batch(_HELD_OUT_SEED, first, count, model, device)
        logits = model(x).split([len(v) for v in concepts.FACTORS.values()], dim=1)
        for i, part in enumerate(logits):
            right[i] += (part.argmax(1) == targets[:, i]).sum().cpu()
    model.train()
    return {name: round(float(r) / images, 4) for name, r in zip(concepts.FACTORS, right, strict=True)}


def _draw_batch(
    seed: int, first: int, count: int, model: VisionTransformer, device: str | torch.device, easy: int = 0
) -> tuple[torch.Tensor, ...]:
    """Returns pixels [n, 3, side, side] in -1..1, factor indices [n, factors], coverage and silhouettes [n, 64], 0..1.

    Coverage is the share of each of a patch's cells that the main object and the companion cover, 0..1, [n, patches, 2,
    cells]."""
    drawn = [concepts.draw(seed, first + i, _EASY if i < easy else None) for i in range(count)]
    pixels = torch.from_numpy(np.stack([c.image for c in drawn])).permute(0, 3, 1, 2)
    targets = torch.tensor([[v.index(c.factors[k]) for k, v in concepts.FACTORS.items()] for c in drawn])
    masks = torch.from_numpy(np.stack([[c.mask == 1, c.mask == 2] for c in drawn])).float()
    rows, columns = model.patch_embed.grid_size
    cells = F.adaptive_avg_pool2d(masks, (rows * _CELLS, columns * _CELLS))
    cover = cells.unflatten(3, (columns, _CELLS)).unflatten(2, (rows, _CELLS)).permute(0, 2, 4, 1, 3, 5)
    cover = cover.reshape(count, rows * columns, 2, _CELLS**2)
    silhouettes = torch.stack([_silhouette(mask) for mask in masks[:, 0]])
    return tuple(t.to(device) for t in (pixels.float() / 127.5 - 1, targets, cover, silhouettes))


def _silhouette(mask: torch.Tensor) -> torch.Tensor:
    """Returns a mask [side, side] cut to the square around its object, as [64] shares of the square's cells."""
    rows, columns = (mask.amax(axis).nonzero() for axis in (1, 0))
    half = int(max(rows[-1] - rows[0], columns[-1] - columns[0])) // 2 + 1
    top, left = int(rows[0] + rows[-1]) // 2, int(columns[0] + columns[-1]) // 2
    square = F.pad(mask, [half] * 4)[top : top + 2 * half, left : left + 2 * half]
    return F.adaptive_avg_pool2d(square[None], _SILHOUETTE).flatten()


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross-entropy per factor, summed over factors; logits [n, values], targets [n, factors]."""
    parts = logits.split([len(v) for v in concepts.FACTORS.values()], dim=1)
    losses = (F.cross_entropy(part, targets[:, i]) for i, part in enumerate(parts))
    return sum(losses, torch.zeros((), device=logits.device))


def _save(model: VisionTransformer, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.safetensors"
    save_file({name: value.half().cpu().contiguous() for name, value in model.state_dict().items()}, path)
    return path
