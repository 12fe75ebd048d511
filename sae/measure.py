"""Measuring: the one place where a finished dictionary meets tokens, each token once.

All that follows (evidence, figures, the explorer) reads what this writes: codes, metrics, and the ViT's responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import nn
from tqdm import tqdm

from sae import vit as vits
from sae.activations import OUTLIER, Activations
from sae.autoencoder import SparseAutoencoder
from sae.latent_codes import HISTOGRAM_EDGES, Codes, Tally
from sae.evidence.fidelity import Fidelity

_PRE_ACTIVATIONS = 2**23  # how many are held at a time


@dataclass(frozen=True)
class Wanted:
    """The images of a layer that a dictionary is measured on.

    Attributes:
        held_out: ids of all held-out images, on which reconstruction is judged.
        ranked: ids of the images by which latents are ranked, both splits.
        sample: ids of the held-out images that go through the ViT; they are ranked too.
        train: ids of all train images.
        stored: ids of the images whose codes are kept token by token; the sample among them.
        median_norm: of the layer's patch tokens; a norm above OUTLIER times of it is high.
    """

    held_out: np.ndarray
    ranked: np.ndarray
    sample: np.ndarray
    train: np.ndarray
    stored: np.ndarray
    median_norm: float


@torch.inference_mode()
def encode(model: SparseAutoencoder, x: Activations) -> Codes:
    """Returns the codes of all tokens of `x`: enough of a second seed to compare with."""
    latents, parts = model.config.latents, []
    for ids, block in _blocks(model, x, "encoding"):
        _rows, _pre, (values, indices) = _encode(model, block)
        parts.append(_codes(ids, x.tokens, latents, values, indices).z)
    return Codes(sparse.vstack(parts, format="csr"), x.ids, x.tokens)


@torch.inference_mode()
def measure(
    model: SparseAutoencoder,
    x: Activations,
    wanted: Wanted,
    variance: np.ndarray,
    ks: Sequence[int] = (),
    splice: Callable[[np.ndarray, torch.Tensor], None] | None = None,
) -> tuple[Codes, dict[str, Any], pd.DataFrame]:
    """Encodes every wanted token once.

    Args:
        x: the dictionary's tokens of all wanted images.
        variance: of the held-out tokens by dimension, float64 [d], for the FVU.
        ks: other numbers of latents to keep per token.
        splice: called with ids and reconstructions [images, tokens, d] of images of the sample, in order.

    Returns:
        the codes; one row of numbers, see `fidelity.Fidelity`; and a row per number of `ks`: at_k, fvu and l0 when
        only the `at_k` largest latents of each token are kept.
    """
    latents, tokens = model.config.latents, x.tokens
    sums, tally = Fidelity(latents, ks), Tally.empty(latents, tokens)
    parts: dict[str, list] = {name: [] for name in ("z", "ids", "images", "places", "image_ids", "error")}
    for ids, block in _blocks(model, x, "measuring"):
        raw, pre, (values, indices) = _encode(model, block)
        held_out = np.isin(ids, wanted.held_out)
        if held_out.any():
            rows = torch.from_numpy(np.repeat(held_out, tokens)).to(raw.device)
            x_hat = (model.combine(values[rows], indices[rows]) + model.b_dec) / model.scale + model.mean
            error = sums.add(model, block[held_out], x_hat, values[rows], indices[rows], pre[rows])
            sampled = np.isin(ids[held_out], wanted.sample)
            parts["error"].append(error[sampled])
            if splice is not None and sampled.any():
                splice(ids[held_out][sampled], x_hat.reshape(-1, tokens, x.width)[torch.from_numpy(sampled)])
        codes = _codes(ids, tokens, latents, values, indices)
        ranked = ids[np.isin(ids, wanted.ranked)]
        if len(ranked):
            high = (raw.norm(dim=1) > OUTLIER * wanted.median_norm).cpu().numpy().reshape(-1, tokens)
            chosen = codes.of(ranked)
            _count(tally, chosen, np.isin(ranked, wanted.train), high[np.isin(ids, ranked)].ravel())
            for name in ("images", "places", "image_ids"):
                parts[name].append(getattr(chosen, name))
        stored = codes.of(ids[np.isin(ids, wanted.stored)])
        parts["z"].append(stored.z)
        parts["ids"].append(stored.ids)
    matrices = {name: sparse.vstack(parts[name], format="csr") for name in ("z", "images", "places")}
    arrays = {name: np.concatenate(parts[name]) for name in ("ids", "image_ids", "error")}
    return Codes(**matrices, **arrays, tokens=tokens, tally=tally), sums.row(variance), sums.other_ks(variance)


class Spliced:
    """The ViT's outputs with reconstructions in place of the layer's tokens, in batches that one forward pass takes.

    Args:
        x: the sample's images with *all* tokens at the layer.
        chosen: which of them the dictionary reconstructs.
    """

    def __init__(self, vit: nn.Module, x: Activations, chosen: slice, layer: int, batch: int):
        self._vit, self._x, self._chosen, self._layer, self._batch = vit, x, chosen, layer, batch
        self._waiting: list[torch.Tensor] = []
        self._outputs: list[np.ndarray] = []

    def __call__(self, ids: np.ndarray, x_hat: torch.Tensor) -> None:
        """Takes reconstructions [images, tokens, d] of these images of the sample, in order."""
        stream = torch.from_numpy(self._x.read(np.searchsorted(self._x.ids, ids))).to(x_hat.device).float()
        stream[:, self._chosen] = x_hat
        self._waiting += stream
        while len(self._waiting) >= self._batch:
            self._run()

    def outputs(self) -> np.ndarray:
        """Returns the outputs of all images so far, float32 [images, outputs]."""
        while self._waiting:
            self._run()
        return np.concatenate(self._outputs)

    def _run(self) -> None:
        part, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
        self._outputs.append(vits.resume(self._vit, torch.stack(part), self._layer).float().cpu().numpy())


def _blocks(model: SparseAutoencoder, x: Activations, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields ids and tokens of as many images as may be encoded together."""
    with tqdm(total=len(x), desc=name, unit="image") as progress:
        for ids, block in x.blocks(max(1, _PRE_ACTIVATIONS // (x.tokens * model.config.latents))):
            yield ids, block
            progress.update(len(ids))


def _encode(
    model: SparseAutoencoder, block: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Returns the tokens of `block` [images, tokens, d] as rows, their pre-activations, and the active latents."""
    rows = torch.from_numpy(block.reshape(-1, block.shape[2])).to(model.b_dec.device).float()
    pre = model.pre_activations(model.standardise(rows))
    return rows, pre, model.select(pre)


def _codes(ids: np.ndarray, tokens: int, latents: int, values: torch.Tensor, indices: torch.Tensor) -> Codes:
    """Returns the codes of a block of images from the active latents of its tokens, [rows, m] each."""
    n = len(ids)
    flat, flat_index = values.reshape(n, -1), indices.reshape(n, -1)
    strongest = values.new_zeros(n, latents).scatter_reduce_(1, flat_index, flat, "amax")
    # The first token at which each latent reaches its maximum: others are sent behind the last token.
    place = torch.arange(tokens, device=values.device).repeat_interleave(values.shape[1]).expand(n, -1)
    place = torch.where(flat == strongest.gather(1, flat_index), place, tokens)
    token = torch.full_like(strongest, tokens, dtype=torch.int64).scatter_reduce_(1, flat_index, place, "amin")
    row, column = strongest.nonzero(as_tuple=True)
    active = (values > 0).cpu().numpy()
    z = sparse.csr_array(
        (values.cpu().numpy()[active], indices.cpu().numpy()[active], np.append(0, np.cumsum(active.sum(1)))),
        (len(values), latents),
    )
    z.sort_indices()
    pattern = column.cpu().numpy(), np.append(0, np.cumsum(np.bincount(row.cpu().numpy(), minlength=n)))
    images, places = (
        sparse.csr_array((matrix[row, column].cpu().numpy(), *pattern), (n, latents)) for matrix in (strongest, token)
    )
    return Codes(z, ids, tokens, images, places, ids)


def _count(tally: Tally, codes: Codes, train: np.ndarray, high: np.ndarray) -> None:
    """Adds the codes of some ranked images to the tally, in place.

    Args:
        train: which of the images are train images, bool [images].
        high: which of their tokens have a high norm, bool [rows].
    """
    row, latent, value = codes.entries()
    latents, tokens, bins = codes.latents, codes.tokens, len(HISTOGRAM_EDGES) - 1
    latent = latent.astype(np.int64)

    def counts(key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return np.bincount(key, minlength=int(np.prod(shape))).reshape(shape)

    split = train.astype(np.int64)
    tally.rows[:] += tokens * np.bincount(split, minlength=2)
    tally.fired[:] += counts(split[row // tokens] * latents + latent, (2, latents))
    tally.total[:] += np.bincount(latent, value, latents)
    tally.histogram[:] += counts(latent * bins + np.digitize(value, HISTOGRAM_EDGES[1:-1]), (latents, bins))
    tally.by_token[:] += counts(latent * tokens + row % tokens, (latents, tokens))
    tally.high[:] += counts(latent[high[row]], (latents,))
    tally.high_rows[:] += high.sum()
