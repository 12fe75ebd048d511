"""From pixels to the activations of one layer, and to the outputs of the untouched ViT."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from sae import vit as vits
from sae.errors import InputError
from sae.evidence import splice
from sae.files import Rows, ahead, whole, write_json
from sae.geometry import check_layer
from sae.images import ranked, shard
from sae.images.reading import as_seen, read_image
from sae.shards import Part
from sae.store import LARGEST

_THUMBNAIL = 8  # side, pixels
_UNDER_WAY = 3  # batches between the device and the disk


@torch.no_grad()  # and not inference_mode: users may train on the result
def activations(
    vit: vits.Model,
    images: Sequence[str | Path | Image.Image] | torch.Tensor,
    layer: int,
    tokens: str = "patches",
    batch: int = 64,
) -> torch.Tensor:
    """Returns the activations after block `layer`, float32 [n, tokens, d] in the computer's memory.

    Args:
        vit: a plain timm ViT, on any device. It runs in eval mode.
        images: n files or Pillow images, to which the ViT's own preprocessing is applied; or a tensor of preprocessed
            images [n, 3, height, width].
        tokens: `patches` (all of an image, row by row), `class` or `all`.
        batch: images in one forward pass.

    Raises:
        InputError: there is no such block, the model is no plain ViT, an image cannot be read, or an activation is not
            finite or above `store.LARGEST`.
    """
    shape, parameter = vits.geometry(vit), next(vit.parameters())
    check_layer(layer, shape.blocks)
    if isinstance(images, str | Path):
        raise InputError(f"images {images}: need a list; list a folder's files by sorted(pathlib.Path(…).iterdir())")
    dimensions = getattr(images, "shape", None)
    if dimensions is not None and (len(dimensions) != 4 or not hasattr(images, "detach")):
        given = f"{type(images).__name__} of shape {tuple(dimensions)}"
        raise InputError(f"images, {given}: need files, Pillow images or a tensor [n, 3, height, width]")
    chosen, prepare = shape.select(tokens), _pixels_of(vit)
    out = torch.empty(len(images), len(range(*chosen.indices(len(shape.roles)))), shape.width)
    training = [module for module in vit.modules() if module.training]
    vit.eval()
    try:
        for first in range(0, len(images), batch):
            part = images[first : first + batch]
            x = part if isinstance(part, torch.Tensor) else prepare(part)
            found = vits.read(vit, x.to(parameter), layer)[:, chosen].float()
            names = [str(image) if isinstance(image, str | Path) else str(first + i) for i, image in enumerate(part)]
            _check(found, names, f"layer {layer}, activations", parameter.dtype != torch.float32)
            out[first : first + len(part)] = found
    finally:
        for module in training:
            module.training = True
    return out


def _pixels_of(vit: vits.Model) -> Callable[[Sequence[str | Path | Image.Image]], torch.Tensor]:
    """Returns the function that prepares n files or Pillow images for the ViT, [n, 3, height, width]."""
    transform, normalise = vits.pixel_transform(vit), vits.normalise(vit)

    def one(image: str | Path | Image.Image) -> np.ndarray:
        try:
            seen = as_seen(image) if isinstance(image, Image.Image) else read_image(Path(image).expanduser())
            return transform(seen).transpose(1, 2, 0)
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{image}: cannot be read as an image: {error}") from error

    return lambda images: normalise(np.stack([one(image) for image in images]))


@torch.inference_mode()
def extract(
    vit: vits.Model,
    pixels: Path,
    parts: Sequence[Part],
    layer: int,
    batch: int = 64,
    dtype: str = "float32",
    names: Sequence[str] | None = None,
    provenance: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Writes the tokens after block `layer` of the images of one shard to the files of `parts`, and their .json files.

    The tokens are float16, or float32 where one of the shard exceeds float16's range.

    Args:
        pixels: .npy, uint8 [images, height, width, 3], as `images.pixels.decode` writes it.
        parts: the files, of images in the same order.
        batch: images in one forward pass.
        dtype: of the forward pass, float32, bfloat16 or float16 (the last two by autocast).
        names: of the images, for errors; None: their numbers.
        provenance: called at the end; returns the shard's provenance.

    Raises:
        InputError: there is no such layer, or an activation is not finite or above `store.LARGEST`.
    """
    geometry = vits.geometry(vit)
    check_layer(layer, geometry.blocks)
    images = Rows(pixels)
    if names is None:
        names = [str(i) for i in range(len(images))]
    with ExitStack() as stack:
        paths = [stack.enter_context(whole(part.path)) for part in parts]
        for kind in (torch.float16, torch.float32):
            with ExitStack() as opened:
                for part, path in zip(parts, paths, strict=True):
                    file = opened.enter_context(path.open("wb"))
                    part.begin(file, str(kind).removeprefix("torch."), len(geometry.roles), geometry.width)
                if _store(vit, images, layer, batch, dtype, kind, names, parts):
                    break
            print(f"layer {layer}: activations exceed float16's range; stored as float32", file=sys.stderr)
    for part in parts:
        facts = {
            "version": 2,
            "layer": layer,
            "roles": list(geometry.prefix) if part.places is None else [],
            "patches": list(geometry.patches),
            "provenance": provenance and provenance(),
        }
        write_json(part.path.with_suffix(".json"), facts | part.facts())


def _store(
    vit: vits.Model,
    images: Rows,
    layer: int,
    batch: int,
    dtype: str,
    kind: torch.dtype,
    names: Sequence[str],
    parts: Sequence[Part],
) -> bool:
    """Writes the images' tokens as `kind`; returns False if this cannot hold an activation.

    Threads read the pixels of the next batches, and write and hash the activations of the last ones, so that the device
    waits for neither.
    """
    device, prepare, low = next(vit.parameters()).device, vits.normalise(vit), dtype != "float32"
    cuda = device.type == "cuda"
    largest = min(LARGEST, torch.finfo(kind).max)

    def pixels() -> Iterator[torch.Tensor]:
        for first in range(0, len(images), batch):
            part = torch.from_numpy(images.read(range(first, min(first + batch, len(images)))))
            yield part.pin_memory() if cuda else part

    def host(tensor: torch.Tensor) -> torch.Tensor:
        """Returns a copy that is there when the device has come so far."""
        if not cuda:
            return tensor.cpu()
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)

    def write(
        first: int, block: torch.Tensor, fits: torch.Tensor, ready: torch.cuda.Event | None
    ) -> list[np.ndarray] | None:
        if ready is not None:
            ready.synchronize()
        return [part.write(first, block.numpy()) for part in parts] if fits else None

    def add(written: list[np.ndarray]) -> None:
        for part, block in zip(parts, written, strict=True):
            part.checksum.update(block.data)

    with (
        ThreadPoolExecutor(1) as writer,
        ThreadPoolExecutor(1) as hasher,
        tqdm(total=len(images), desc=f"layer {layer}", unit="image") as progress,
    ):
        under_way = deque[tuple[int, torch.Tensor, Future[list[np.ndarray] | None]]]()
        hashed: Future[None] = hasher.submit(lambda: None)
        begun = 0  # images
        for part in chain(ahead(pixels()), repeat(None, _UNDER_WAY)):
            if part is not None:
                with torch.autocast(device.type, getattr(torch, dtype), enabled=low):
                    tokens = vits.read(vit, prepare(part), layer)
                block, fits = host(tokens.to(kind)), host(tokens.abs().amax().float() <= largest)
                ready = torch.cuda.current_stream(device).record_event() if cuda else None
                under_way.append((begun, tokens, writer.submit(write, begun, block, fits, ready)))
                begun += len(part)
            if under_way and (part is None or len(under_way) == _UNDER_WAY):
                first, tokens, done = under_way.popleft()
                if (written := done.result()) is None:
                    _check(tokens, names[first:], f"layer {layer}, activations", low)
                    return False
                hashed.result()
                hashed = hasher.submit(add, written)
                progress.update(len(tokens))
        hashed.result()
    return True


def _check(values: torch.Tensor, paths: Sequence[str], source: str, low: bool = False) -> None:
    """Raises InputError unless all values [images, ...] are finite and at most `store.LARGEST`.

    Args:
        paths: of these images, perhaps followed by others.
        source: of the values, for the message.
        low: whether it computed in a lower precision than float32.
    """
    largest = values.flatten(1).abs().amax(1).float().cpu().numpy()
    wrong = np.flatnonzero(~(largest <= LARGEST))  # NaN is not below either
    if len(wrong):
        value = largest[wrong[0]]
        remedy = "set extraction.dtype to float32" if low and not np.isfinite(value) else "check the model's weights"
        problem = f"image {paths[wrong[0]]} gives {value:.3g}, not a number below {LARGEST:g}"
        raise InputError(f"{source}: {problem}; {remedy}")


@torch.inference_mode()
def reference(
    vit: vits.Model, shards: Sequence[str | Path], manifest: pd.DataFrame, ids: Sequence[int], batch: int = 64
) -> dict[str, np.ndarray]:
    """Runs the untouched ViT over the ranked images once, see `images.ranked`.

    Args:
        shards: all pixel shards in order, .npy, uint8 [images, height, width, 3].
        manifest: of these images.
        ids: the held-out sample, ascending; it is ranked in any case.
        batch: images in one forward pass.

    Returns:
        features: the head's input for every ranked image, by id: the class token or the pooled patches of the last
        block, float32 [n, D]. thumbnails: of the same, see `thumbnails`, float32 [n, 192]. logits: outputs for the
        held-out sample, by id, float32 [m, outputs].

    Raises:
        InputError: an image of the sample is in no shard, or an output of the ViT is not finite.
    """
    rows = ranked(manifest, ids)
    if absent := sorted({*ids} - {*rows["id"]}):
        raise InputError(f"image {absent[0]}: it is in no pixel shard; pass all of them")
    features, small, outputs = (_Growing(n) for n in (len(rows), len(rows), len(ids)))
    for here, pixels, tokens in _forward(vit, shards, manifest, rows, batch):
        chosen = torch.from_numpy(np.isin(here, ids)).to(tokens.device)
        features.add(_head_input(vit, tokens))
        small.add(thumbnails(pixels))
        if chosen.any():
            outputs.add(vit.forward_head(tokens[chosen]).float().cpu().numpy())
    paths = manifest.set_index("id").loc[list(ids), "path"].tolist()
    _check(torch.from_numpy(outputs.array), paths, "outputs of the model")
    return {"features": features.array, "thumbnails": small.array, "logits": outputs.array}


@torch.inference_mode()
def embed(
    vit: vits.Model, shards: Sequence[str | Path], manifest: pd.DataFrame, ids: Sequence[int], batch: int = 64
) -> np.ndarray:
    """Returns the head's input for every ranked image, float32 [n, D]; see `reference`.

    Args:
        vit: may be another model than the ViT under study. Its normalisation is applied, and pixels are resized to its
            input size. The crop is that of the ViT under study.

    Raises:
        InputError: an output of the ViT is not finite.
    """
    rows = ranked(manifest, ids)
    features = _Growing(len(rows))
    for _ids, _pixels, tokens in _forward(vit, shards, manifest, rows, batch):
        features.add(_head_input(vit, tokens))
    return features.array


def describe(vit: vits.Model, manifest: pd.DataFrame, ids: Sequence[int], logits: np.ndarray) -> dict[str, Any]:
    """Returns the facts about the untouched ViT: its shape, its classes, and its accuracy on the images `ids`.

    Args:
        manifest: with a row for each of the images.
        logits: of the images, [len(ids), outputs].
    """
    names = vits.class_names(vit)
    truth = splice.targets(manifest.set_index("id").loc[list(ids)], names)
    return {
        "geometry": asdict(vits.geometry(vit)),
        "parameters": sum(p.numel() for p in vit.parameters()),
        "class_names": names,
        "ids": list(ids),
        "accuracy": splice.accuracy(logits, truth, names),
        "known_labels": {group: int((column >= 0).sum()) for group, column in zip(names, truth.T, strict=True)},
    }


def thumbnails(pixels: np.ndarray) -> np.ndarray:
    """Returns means over 8 x 8 cells in three colours, 0 to 1: float32 [n, 192], all of a colour together.

    They encode the places of colours, not the objects. They serve as the embedding of images if no better one is
    independent of the layer under study. Cells overlap by a pixel where 8 does not divide a side.

    Args:
        pixels: uint8 [n, height, width, 3].
    """
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return F.adaptive_avg_pool2d(x, _THUMBNAIL).flatten(1).numpy()


def _forward(
    vit: vits.Model, shards: Sequence[str | Path], manifest: pd.DataFrame, rows: pd.DataFrame, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray, torch.Tensor]]:
    """Yields ids, pixels [b, height, width, 3], and tokens after the last block and norm [b, tokens, width]."""
    prepare, side = vits.normalise(vit), vits.geometry(vit).side
    with tqdm(total=len(rows), desc="untouched model", unit="image") as progress:
        for number, path in enumerate(shards):
            array, here = Rows(path), shard(manifest, number, len(shards))
            places = np.flatnonzero(here["id"].isin(rows["id"]))
            for first in range(0, len(places), batch):
                chosen = places[first : first + batch]
                pixels = array.read(chosen)
                x = prepare(pixels)
                if x.shape[2:] != side:  # normalised first: the two commute, and bytes would be rounded again
                    x = F.interpolate(x, size=side, mode="bilinear", antialias=True)
                tokens = vit.forward_features(x)
                _check(tokens, here["path"].iloc[chosen].tolist(), "outputs of the model")
                yield here["id"].to_numpy()[chosen], pixels, tokens
                progress.update(len(pixels))


def _head_input(vit: vits.Model, tokens: torch.Tensor) -> np.ndarray:
    return vit.forward_head(tokens, pre_logits=True).float().cpu().numpy()


class _Growing:
    """An array of n rows that are added in order.

    A list of parts would take many times the memory: a part may be a view of a whole batch, and parts that stay between
    batches that go keep the memory from being used again.
    """

    def __init__(self, rows: int):
        self._rows, self._filled = rows, 0
        self.array = np.empty((0, 0), np.float32)

    def add(self, part: np.ndarray) -> None:
        if not self._filled:
            self.array = np.empty((self._rows, *part.shape[1:]), part.dtype)
        self.array[self._filled : self._filled + len(part)] = part
        self._filled += len(part)
