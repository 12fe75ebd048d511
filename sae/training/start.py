"""The initial SAE."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

from sae.autoencoder import SAEConfig, SparseAutoencoder, gain
from sae.clusters import centres, standardised_sample
from sae.store import Activations
from sae.training.config import Source, TrainConfig

_SCALED_BY = 2048  # tokens


def untrained(x: Activations, config: TrainConfig, source: Source, seed: int = 0) -> SparseAutoencoder:
    """Returns the SAE at the start of training: decoder rows of norm 1, the encoder a copy of them (tied start).

    Args:
        x: The train set's activations, read where the start depends on tokens.
        source: With the statistics of x.
    """
    model = SparseAutoencoder(
        SAEConfig(x.width, config.latents, config.k, config.method, config.input, source.layer, source.tokens),
        *(torch.tensor(source.mean).float(), source.scale) if config.input == "standardised" else (),
    )
    if config.start == "kmeans":
        rng = np.random.default_rng(seed)
        rows = torch.from_numpy(centres(standardised_sample(x, rng, (source.mean, source.scale)), config.latents, rng))
    elif config.start == "tokens":
        rows = _towards_tokens(x, config.latents, source.mean, seed)
    else:
        generator = torch.Generator().manual_seed(seed)
        bound = x.width**-0.5
        rows = torch.empty(config.latents, x.width).uniform_(-bound, bound, generator=generator)
    with torch.no_grad():
        model.W_dec.copy_(F.normalize(rows))
        # The notebook's decoder is the normalised copy of an ordinary linear encoder; the field's encoder is the copy.
        model.W_enc.copy_(rows if config.decoder == "start" else model.W_dec)
        if config.start == "scaled":
            # Many similar latents reconstruct a token several times too large when k of them are active.
            first = x.read(np.arange(min(len(x), math.ceil(_SCALED_BY / x.tokens)))).reshape(-1, x.width)
            model.W_enc.mul_(gain(model, model.standardise(torch.from_numpy(first).float())))
    return model


def _towards_tokens(x: Activations, latents: int, mean: np.ndarray, seed: int) -> torch.Tensor:
    """Returns the differences between random tokens and the mean, [F, d]."""
    chosen = np.random.default_rng(seed).choice(len(x) * x.tokens, latents)
    images, inverse = np.unique(chosen // x.tokens, return_inverse=True)
    return torch.from_numpy(x.read(images)[inverse, chosen % x.tokens] - mean).float()
