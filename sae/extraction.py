"""From pixels to the activations of one layer: the forward pass, stopped there, written as a shard of the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from sae import vit
from sae.errors import InputError
from sae.files import sha256, whole, write_json


@torch.inference_mode()
def extract(
    model: nn.Module,
    pixels: Path,
    ids: Sequence[int],
    layer: int,
    out: Path,
    batch: int = 64,
    dtype: str = "float32",
    provenance: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Writes the tokens after block `layer` of every image of one shard to `out` (.npy) and its .json.

    Args:
        pixels: .npy, uint8 [images, height, width, 3], as `images.decode` writes it.
        ids: the images' ids in the manifest, in the same order.
        batch: images in one forward pass.
        dtype: float32, bfloat16 or float16, what the forward pass computes in (by autocast where it is not float32).
        provenance: asked at the end for what made the shard.

    Raises:
        InputError: there is no such layer, or an activation is not finite in float16.
    """
    geometry = vit.geometry(model)
    vit.check_layer(layer, geometry.blocks)
    device = next(model.parameters()).device
    prepare = vit.normalise(model)
    images = np.load(pixels, mmap_mode="r")
    low = dtype != "float32"
    with whole(out) as part:
        shape = (len(images), len(geometry.roles), geometry.width)
        stored = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
        starts = range(0, len(images), batch)
        for first in tqdm(starts, desc=f"layer {layer}", unit="batch"):
            with torch.autocast(device.type, getattr(torch, dtype), enabled=low):
                tokens = vit.read(model, prepare(images[first : first + batch]), layer)
            block = tokens.half().cpu().numpy()
            finite = np.isfinite(block).all(axis=(1, 2))
            if not finite.all():
                bad = ids[first + int(finite.argmin())]
                raise InputError(
                    f"layer {layer}: activations of image {bad} are not finite in float16; "
                    "check the model's weights, or take an earlier layer"
                )
            stored[first : first + len(block)] = block
        stored.flush()
        checksum = sha256(part)
    facts = {
        "version": 1,
        "layer": layer,
        "ids": [int(i) for i in ids],
        "shape": list(shape),
        "roles": list(geometry.prefix),
        "grid": list(geometry.grid),
        "sha256": checksum,
        "provenance": provenance and provenance(),
    }
    write_json(out.with_suffix(".json"), facts)
