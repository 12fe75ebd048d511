"""A timm Vision Transformer: its shape, its preprocessing, and reading and writing its residual stream.

Layers are timm's block indices from 0: layer 6 is the residual stream after `blocks[6]`, tokens [n, tokens, width].
"""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from sae import (
    concept_vit,  # noqa: F401 -- registers vit_tiny_concepts with timm
    weight_files,
)
from sae import device as devices
from sae.errors import InputError
from sae.geometry import Geometry, check_layer
from sae.light_timm import timm
from sae.weight_files import timm_name

if TYPE_CHECKING:
    from sae.autoencoder import SparseAutoencoder

Model = Any  # a timm ViT, an nn.Module: type checkers know none of the attributes that plain ViTs share
_STRIP = 8  # times as long as wide: the crop shows less than this


def load(
    name: str, checkpoint: str | Path | None = None, image_size: int | None = None, device: str | torch.device = "cpu"
) -> Model:
    """Returns the timm model `name` in eval mode, float32.

    Args:
        name: also as hubs spell it, such as timm/vit_tiny_patch16_224.
        checkpoint: a local file, see `weight_files.read`; `random` for random weights (seed 0); None for timm's own
            pretrained weights.
        image_size: pixels of the square input; None: the model's own. Position embeddings are resampled by timm.

    Raises:
        InputError: there is no such model, it is not a plain ViT, or the weights are missing or do not fit.
    """
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    name = timm_name(name)
    if not timm.is_model(name) and not name.startswith(("hf-hub:", "hf_hub:")):
        plain = name.split("/")[-1].replace("-", "_")  # as other libraries spell it: google/vit-base-patch16-224
        parts = plain.split(".")[0][:12], plain.split("_")[0]
        patterns = [plain, *(f"{before}{part}*" for part in parts for before in ("", "*"))]
        near = next((found for pattern in patterns if (found := timm.list_models(pattern)[:4])), [])
        raise InputError(f"model {name}: timm has no such model{'; near it: ' + ', '.join(near) if near else ''}")
    path = None if checkpoint in (None, "random") else Path(checkpoint).expanduser()
    weights = None if path is None else weight_files.read(path)
    try:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model: Model = timm.create_model(name, pretrained=checkpoint is None, **size)
            if weights is not None and (outputs := _head_outputs(weights, model)) != model.num_classes:
                model = timm.create_model(name, num_classes=outputs, **size)  # fine-tuned on other classes, or no head
    except Exception as error:
        # timm, its hub client and the model's constructor raise different kinds of errors here.
        wanted = "its pretrained weights" if checkpoint is None else "this model"
        raise InputError(
            f"model {name}: timm could not make {wanted}: {_first_line(error)}; "
            "with no network, give a local file as its checkpoint"
        ) from error
    if weights is not None and path is not None:
        _fit_weights(model, weights, name, path)
    shape = geometry(model)
    for side, patch in zip(shape.side, model.patch_embed.patch_size, strict=True):
        if side < patch or (image_size is not None and side % patch):
            raise InputError(f"model.image_size {side}: patches are {patch} pixels wide; give a multiple of {patch}")
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear  # see there
    return model.eval().requires_grad_(False).to(device)


def geometry(model: Model) -> Geometry:
    """Returns the model's geometry.

    Raises:
        InputError: the model is not a plain ViT (a stack of blocks on a constant grid of tokens).
    """
    embed = getattr(model, "patch_embed", None)
    plain = (
        isinstance(getattr(model, "blocks", None), nn.Sequential | nn.ModuleList)
        and getattr(embed, "grid_size", None) is not None
        and hasattr(model, "num_prefix_tokens")
        and "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
    )
    if not plain:
        kind = type(model).__name__
        raise InputError(f"model {kind}: not a plain Vision Transformer (timm's vit_*, deit_*, eva02_*, beit_* are)")
    named = [("class", "cls_token"), ("distillation", "dist_token"), ("register", "reg_token")]
    found = [(kind, getattr(model, attribute, None)) for kind, attribute in named]
    prefix = [kind for kind, token in found if token is not None for _ in range(token.shape[1])]
    prefix += ["register"] * (model.num_prefix_tokens - len(prefix))
    return Geometry(
        blocks=len(model.blocks),
        width=model.embed_dim,
        prefix=tuple(prefix),
        patches=tuple(model.patch_embed.grid_size),
        side=tuple(model.patch_embed.img_size),
        outputs=getattr(model, "num_classes", 0),
    )


def pixel_transform(model: Model) -> Callable[[Image.Image], np.ndarray]:
    """Returns the model's resizing and cropping: RGB image -> uint8 [3, height, width]."""
    config = _data_config(model)
    transform = timm.data.create_transform(**config, is_training=False, use_prefetcher=True)
    cut = _middle if config["crop_mode"] == "center" else lambda image: image
    return lambda image: np.asarray(transform(cut(image)))


def _middle(image: Image.Image) -> Image.Image:
    """Returns the middle of a strip, any other image as it is: timm scales all of a strip up before it crops it."""
    long, short = max(image.size), min(image.size)
    if long <= _STRIP * short:
        return image
    first = (long - _STRIP * short) // 2
    last = long - first
    return image.crop((first, 0, last, short) if image.width == long else (0, first, short, last))


def normalise(model: Model) -> Callable[[np.ndarray | torch.Tensor], torch.Tensor]:
    """Applies the model's normalisation: uint8 pixels [n, height, width, 3] -> float32 [n, 3, height, width]."""
    config = _data_config(model)
    device = next(model.parameters()).device
    mean, std = (torch.tensor(config[key], device=device)[:, None, None] for key in ("mean", "std"))

    def apply(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
        x = pixels if isinstance(pixels, torch.Tensor) else torch.from_numpy(np.array(pixels))
        x = x.to(device, non_blocking=device.type == "cuda").permute(0, 3, 1, 2)
        return (x.float() / 255 - mean) / std

    return apply


def class_names(model: Model) -> dict[str, list[str]]:
    """Returns the names of the head's outputs, in order, for each group of outputs.

    A head whose names all read "attribute: value" has a group for each attribute: one softmax beside the other, as in
    the concept backbone. Any other head is one group, `label`, named by the model's own label names or by ImageNet's
    synsets. Empty where the names are unknown.
    """
    names = model.pretrained_cfg.get("label_names")
    if names and all(": " in n for n in names):
        groups: dict[str, list[str]] = {}
        for name in names:
            attribute, value = name.split(": ", 1)
            groups.setdefault(attribute, []).append(value)
        return groups
    if not names and (subset := timm.data.infer_imagenet_subset(model)):
        names = timm.data.ImageNetInfo(subset).label_names()
    return {"label": list(names)} if names and len(names) == model.num_classes else {}


def groups(model: Model) -> list[int]:
    """Returns the number of outputs of each softmax of the head, see `class_names`; none without a head."""
    outputs = geometry(model).outputs
    return ([len(values) for values in class_names(model).values()] or [outputs]) if outputs else []


def read(model: Model, x: torch.Tensor, layer: int) -> torch.Tensor:
    """Returns all tokens after block `layer`, [n, tokens, width]; the blocks after it are not run.

    Args:
        x: normalised images [n, 3, height, width].

    Raises:
        InputError: there is no such block.
    """
    check_layer(layer, len(model.blocks))
    prefix = model.num_prefix_tokens > 0  # timm cannot return the prefix of a model that has none
    output = {"output_fmt": "NLC", "return_prefix_tokens": prefix, "intermediates_only": True, "norm": False}
    tokens = model.forward_intermediates(x, indices=[layer], stop_early=True, **output)[0]
    return torch.cat(tokens[::-1], 1) if prefix else tokens  # timm returns the patches, then the prefix


@contextmanager
def edit(model: Model, layer: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Context: every forward pass continues from `change(tokens)` in place of the tokens after block `layer`."""
    blocks = model.blocks
    check_layer(layer, len(blocks))
    handle = blocks[layer].register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def splice(
    model: Model,
    layer: int,
    sae: SparseAutoencoder,
    tokens: str | None = None,
    ablate: Iterable[SupportsIndex] = (),
    steer: Mapping[int, float] | None = None,
    keep_error: bool = False,
) -> Iterator[None]:
    """Context: the SAE's reconstruction replaces the tokens after block `layer` in every forward pass.

    Args:
        model: a plain timm ViT.
        tokens: the tokens to replace, `patches`, `class` or `all`; None: those that the SAE was trained on.
        ablate: latents whose activation becomes 0.
        steer: latent -> the activation that it gets on every replaced token, in the units of `sae.encode`.
        keep_error: add the SAE's error x - x̂ again. Then the tokens change by `ablate` and `steer` alone, and not at
            all without them.

    Raises:
        InputError: there is no such block or latent, a latent is ablated and steered, or the widths or devices differ.
    """
    shape, latents = geometry(model), sae.config.latents
    chosen = shape.select(tokens or sae.config.tokens)
    removed = [_latent(latent, latents) for latent in ablate]
    wanted = {_latent(latent, latents): float(value) for latent, value in (steer or {}).items()}
    if both := sorted({*removed} & {*wanted}):
        raise InputError(f"latent {both[0]}: it cannot be ablated and steered; name it once")
    if sae.config.width != shape.width:
        raise InputError(f"an SAE of width {sae.config.width} does not fit a ViT of width {shape.width}")
    place, device = sae.b_dec.device, next(model.parameters()).device
    if place != device:
        raise InputError(f"the SAE is on {place}, the ViT on {device}; move it: sae.load(path, device={str(device)!r})")
    wanted |= dict.fromkeys(removed, 0.0)

    def reconstruct(stream: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, enabled=False):  # float32, as it was trained and measured
            return changed(stream)

    def changed(stream: torch.Tensor) -> torch.Tensor:
        part = stream[:, chosen]
        x = part.flatten(0, 1).float()
        values, indices = sae.encode_sparse(x)
        x_hat = sae.reconstruct(values, indices)
        new = x if keep_error else x_hat
        for latent, activation in wanted.items():
            change = activation - (values * (indices == latent)).sum(1, keepdim=True)
            new = new + change * (sae.W_dec[latent] / sae.scale)
        stream = stream.clone()
        stream[:, chosen] = new.reshape(part.shape).to(stream.dtype)
        return stream

    with edit(model, layer, reconstruct):
        yield


def _latent(latent: SupportsIndex, latents: int) -> int:
    try:
        number = operator.index(latent)
    except TypeError:
        number = -1
    if not 0 <= number < latents:
        raise InputError(f"latent {latent!r}: this SAE has latents 0..{latents - 1}")
    return number


def resume(model: Model, tokens: torch.Tensor, layer: int, until: int | None = None) -> torch.Tensor:
    """Returns the logits [n, outputs] of a forward pass that continues from `tokens` after block `layer`.

    With `until`, a later block, it returns all tokens after that block instead, as `read` does.

    The blocks up to `layer` are not run, so a late layer costs little. Plain ViTs take their position information
    before the blocks or as an argument of each block, so the skipped part is not needed. The result can be
    differentiated if `tokens` require it.
    """
    blocks = model.blocks
    check_layer(layer, len(blocks))
    assert until is None or until > layer
    kept = [blocks[i] for i in range(layer + 1)]
    side = geometry(model).side
    blank = torch.zeros(len(tokens), 3, *side, device=tokens.device, dtype=next(model.parameters()).dtype)
    try:
        for i in range(layer + 1):
            blocks[i] = _Constant(tokens)  # see there
        with torch.inference_mode(not tokens.requires_grad):
            return model(blank) if until is None else read(model, blank, until)
    finally:
        for i, block in enumerate(kept):
            blocks[i] = block


def _data_config(model: Model) -> dict:
    config = timm.data.resolve_model_data_config(model)
    return config | {"input_size": (3, *geometry(model).side)}


def _head_outputs(weights: dict[str, torch.Tensor], model: Model) -> int:
    """Returns the number of classes of the weights' head, 0 without one; the model's own if its head is not linear."""
    own, classifier = int(model.num_classes), model.pretrained_cfg.get("classifier")
    if not isinstance(classifier, str):
        return own
    head = weights.get(f"{classifier}.weight")
    return 0 if head is None else head.shape[0] if head.ndim == 2 else own


def _fit_weights(model: Model, weights: dict[str, torch.Tensor], name: str, path: Path) -> None:
    patch = weights.get("patch_embed.proj.weight")
    wanted = tuple(model.patch_embed.patch_size) if hasattr(model, "patch_embed") else None
    if patch is not None and patch.ndim == 4 and wanted is not None and tuple(patch.shape[2:]) != wanted:
        # timm would resample the patches without a word: a model that nobody trained.
        raise InputError(
            f"checkpoint {path}: does not fit {name}: its patches are {patch.shape[2]} pixels wide, "
            f"the model's {wanted[0]}"
        )
    try:
        # timm's conversion for the model's family: old names, other position grids.
        adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", lambda weights, _model: weights)
        missing, extra = model.load_state_dict(adapt(weights, model), strict=False)
    except Exception as error:
        # adapting and loading raise different kinds of errors for shapes that do not fit.
        detail = str(error).splitlines()[-1].strip()
        raise InputError(f"checkpoint {path}: does not fit {name}: {detail}") from error
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which the model does not have"
        if missing and extra:
            what += f" and has {extra[0]} instead"
        raise InputError(f"checkpoint {path}: does not fit {name}: it {what}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# The two places where this module reaches into a model: `load` changes the class of its linear layers, and `resume`
# changes its blocks for the time of one forward pass. The models' own forward methods stay as they are in timm.


class _Linear(nn.Linear):
    """A linear layer whose products are `device.linear`'s: a ViT takes a quarter less time on AMD's CPUs.

    Only the layer's class changes, so that its parameters, their names and references to the layer stay.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain = torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)
        return (F.linear if plain else devices.linear)(x, self.weight, self.bias)


class _Constant(nn.Module):
    """Stands in for a block: returns the same tokens for every input.

    timm has no public way to start a forward pass after a block, and each family's forward does more than run blocks.
    """

    def __init__(self, tokens: torch.Tensor):
        super().__init__()
        self.tokens = tokens

    def forward(self, *_args: object, **_kwargs: object) -> torch.Tensor:
        return self.tokens
