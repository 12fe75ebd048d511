"""Whether the ViT and the images can give what a config asks for: said before the jobs that take long."""

from __future__ import annotations

from typing import Any

from sae.errors import InputError
from sae.geometry import Geometry, check_layer


def check(config: dict[str, Any], geometry: Geometry, train_images: int | None = None) -> None:
    """Compares a complete config with the ViT, and with the number of train images where it is known.

    Raises:
        InputError: a layer, a k, the tokens, the batch, the precision or a baseline asks for more than there is.
    """
    grid, training = config["grid"], config["training"]
    for layer in grid["layers"]:
        check_layer(layer, geometry.blocks)
    latents = round(config["sae"]["expansion"] * geometry.width)
    if max(grid["ks"]) > latents:
        raise InputError(
            f"config key grid.ks: {max(grid['ks'])} active latents of {latents} "
            f"(sae.expansion {config['sae']['expansion']} x width {geometry.width}); lower k or raise sae.expansion"
        )
    dense = [method for method in grid["methods"] if method in ("relu", "jumprelu")]
    if training["precision"] == "int8" and dense:
        raise InputError(
            f"config key training.precision: int8 is not possible for {dense[0]}; write auto, bf16 or fp32"
        )
    per_image = len(geometry.roles[geometry.select(config["tokens"])])
    per_image = min(per_image, config["limits"]["tokens_per_image"] or per_image)
    if train_images is None:
        return
    tokens = train_images * per_image
    have, unit = (train_images, "images") if training["whole_images"] else (tokens, "tokens")
    if training["batch"] > have:
        raise InputError(
            f"config key training.batch: {training['batch']} {unit} per step, "
            f"but the {train_images} train images have {have} {unit}; lower it to {have} or less"
        )
    for key, method in ("methods", "archetypal"), ("baselines", "kmeans"), ("baselines", "sampled"):
        if method in grid[key] and latents > tokens:
            raise InputError(
                f"config key grid.{key}: {method} needs as many tokens as latents, {latents}, "
                f"but the {train_images} train images have {tokens}; lower sae.expansion or leave {method} out"
            )
