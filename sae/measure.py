"""The measurement of a finished dictionary: it encodes each token once.

The evidence, the figures and the explorer read its results: codes, metrics, and the ViT's responses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import nn
from tqdm import tqdm

from sae import vit as vits
from sae.autoencoder import SparseAutoencoder
from sae.evidence import attribution, interventions, one_factor, splice
from sae.evidence.fidelity import Fidelity
from sae.evidence.layer_facts import LayerFacts
from sae.latent_codes import HISTOGRAM_EDGES, Codes, Growing, Tally
from sae.layer import Layer
from sae.store import OUTLIER, Activations

_PRE_ACTIVATIONS = 2**23  # how many are held at a time


@dataclass(frozen=True)
class Setup:
    """One layer, the ViT, and the extent of the measurement of each dictionary.

    Attributes:
        layer: the store and its images.
        facts: of the layer.
        vit: the ViT, on the device of the dictionaries.
        logits: its outputs for the sample, untouched, float32 [m, outputs].
        gradients: of its predictions for the sample.
        batch: images in one forward pass.
        ks: other numbers of latents to keep per token.
        latents, images: number of latents to ablate and steer, and of images per latent.
        pairs: tokens of pairs of images, see `one_factor.tokens`; None for images without known factors.
    """

    layer: Layer
    facts: LayerFacts
    vit: nn.Module
    logits: np.ndarray
    gradients: attribution.Gradients
    batch: int = 64
    ks: Sequence[int] = ()
    latents: int = 24
    images: int = 4
    pairs: np.ndarray | None = None


@dataclass(frozen=True)
class Measured:
    """One dictionary, measured.

    Attributes:
        codes: its latents.
        metrics: one row of numbers, see `fidelity.Fidelity`, `splice.metrics` and `attribution.agreement`.
        other_ks: a row per number of `Setup.ks`: at_k, fvu and l0 when only the `at_k` largest latents of a token stay.
        responses: of the ViT to ablated and steered latents.
        attributions: the estimated effects of all latents.
    """

    codes: Codes
    metrics: dict[str, Any]
    other_ks: pd.DataFrame
    responses: interventions.Responses
    attributions: attribution.Attributions


@torch.inference_mode()
def encode(model: SparseAutoencoder, x: Activations) -> Codes:
    """Returns the codes of all tokens of `x`. Of a second seed, the comparison needs nothing else."""
    latents, parts = model.config.latents, []
    for ids, block in _blocks(model, x, "encoding"):
        _rows, _pre, (values, indices) = _encode(model, block)
        parts.append(codes_of(ids, x.tokens, latents, values, indices).z)
    return Codes(sparse.vstack(parts, format="csr"), x.ids, x.tokens)


def measure(model: SparseAutoencoder, setup: Setup, keep_all: bool = True) -> Measured:
    """Encodes every ranked image once, and runs the ViT on the sample.

    Args:
        keep_all: keep the codes of all ranked images token by token; else those of the sample alone.
    """
    layer, number = setup.layer, model.config.layer
    assert number is not None
    whole = layer.tokens("all", layer.sample)
    codes, row, other_ks = _pass(model, setup, keep_all)
    if setup.pairs is not None:
        codes = replace(codes, changes=one_factor.changes(model, setup.pairs))
    sample = codes.of(layer.sample)
    names = layer.reference["class_names"]
    truth = splice.targets(layer.manifest.set_index("id").loc[layer.sample], names)
    head = layer.geometry.outputs > 0
    spliced = _spliced(model, setup, number, whole, sample)
    row |= splice.metrics(setup.logits, spliced, setup.facts.mean, setup.facts.zero, truth, names, head)
    drawn = interventions.choose(sample, setup.latents)
    responses = interventions.run(setup.vit, model, whole, sample, drawn, setup.facts.clean, setup.images)
    attributions = attribution.attribute(model, sample, setup.gradients)
    row |= attribution.agreement(attributions, sample, responses, names)
    return Measured(codes, row, other_ks, responses, attributions)


@torch.inference_mode()
def _pass(model: SparseAutoencoder, setup: Setup, keep_all: bool) -> tuple[Codes, dict[str, Any], pd.DataFrame]:
    layer, latents = setup.layer, model.config.latents
    x = layer.tokens(layer.statistics["tokens"], layer.ranked["id"].to_numpy())
    tokens, limit = x.tokens, OUTLIER * layer.statistics["norms"]["patch"]["median"]
    sums, tally = Fidelity(latents, setup.ks), Tally.empty(latents, tokens)
    z, strongest = Growing(latents, np.float32), Growing(latents, np.float32, np.int64)
    parts: dict[str, list[np.ndarray]] = {"ids": [], "image_ids": [], "error": []}
    for ids, block in _blocks(model, x, "measuring"):
        raw, pre, (values, indices) = _encode(model, block)
        held_out = np.isin(ids, layer.held_out)
        if held_out.any():
            rows = torch.from_numpy(np.repeat(held_out, tokens)).to(raw.device)
            x_hat = model.reconstruct(values[rows], indices[rows])
            error = sums.add(model, block[held_out], x_hat, values[rows], indices[rows], pre[rows])
            parts["error"].append(error[np.isin(ids[held_out], layer.sample)])
        codes = codes_of(ids, tokens, latents, values, indices)
        _count(tally, codes, ~held_out, (raw.norm(dim=1) > limit).cpu().numpy())
        strongest.add(codes.images, codes.places)
        parts["image_ids"].append(ids)
        stored = codes if keep_all else codes.of(ids[np.isin(ids, layer.sample)])
        z.add(stored.z)
        parts["ids"].append(stored.ids)
    images, places = strongest.matrices()
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    variance = setup.facts.variance
    found = Codes(z.matrices()[0], tokens=tokens, images=images, places=places, tally=tally, **arrays)
    return found, sums.row(variance), sums.other_ks(variance)


@torch.inference_mode()
def _spliced(model: SparseAutoencoder, setup: Setup, layer: int, x: Activations, sample: Codes) -> np.ndarray:
    """Returns the ViT's outputs with reconstructions in place of the layer's tokens, float32 [images, outputs].

    Args:
        x: all tokens of the sample.
        sample: its codes.
    """
    outputs, device = [], model.b_dec.device
    for ids, block in x.blocks(setup.batch):
        z = sample.of(ids).z
        latent, start = (torch.from_numpy(part.astype(np.int64)).to(device) for part in (z.indices, z.indptr[:-1]))
        value = torch.from_numpy(z.data).to(device)
        decoded = F.embedding_bag(latent, model.W_dec, start, per_sample_weights=value, mode="sum")
        x_hat = (decoded + model.b_dec) / model.scale + model.mean
        stream = torch.from_numpy(block).to(device).float()
        stream[:, setup.layer.selected] = x_hat.reshape(len(ids), -1, x.width)
        outputs.append(vits.resume(setup.vit, stream, layer).float().cpu().numpy())
    return np.concatenate(outputs)


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


def codes_of(ids: np.ndarray, tokens: int, latents: int, values: torch.Tensor, indices: torch.Tensor) -> Codes:
    """Returns the codes of a block of images from the active latents of its tokens, [rows, m] each."""
    n = len(ids)
    flat, flat_index = values.reshape(n, -1), indices.reshape(n, -1)
    strongest = values.new_zeros(n, latents).scatter_reduce_(1, flat_index, flat, "amax")
    # The first token at which each latent reaches its maximum; all other tokens get a number above the last token's.
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
