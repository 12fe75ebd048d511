"""What the latents of an SAE do on the tokens of some images: one sparse matrix, on which all evidence rests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from sae.activations import Activations
from sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Codes:
    """The activations of F latents on the tokens of n images.

    z: float32 [n · tokens, F], only what is above 0; row i · tokens + t is token t of image i. images: the strongest
    activation of each latent on each image, float32 [n, F]. places: at which token that is, from 0, the first of equal
    ones; int64 [n, F], an entry (also a 0) where `images` has one. ids: the images' ids [n]. tokens: how many an image
    has, in the order of the store.
    """

    z: sparse.csr_array
    images: sparse.csr_array
    places: sparse.csr_array
    ids: np.ndarray
    tokens: int

    @property
    def latents(self) -> int:
        return self.z.shape[1]


@torch.inference_mode()
def encode(sae: SparseAutoencoder, x: Activations) -> Codes:
    """Encodes all tokens of `x`."""
    device, latents, parts = sae.b_dec.device, sae.settings.latents, []
    for ids, block in x.blocks(max(1, 2**23 // (x.tokens * latents))):
        n = len(ids)
        values, indices = sae.encode_sparse(torch.from_numpy(block.reshape(-1, x.width)).to(device).float())
        wide = values.reshape(n, -1), indices.reshape(n, -1)
        strongest = values.new_zeros(n, latents).scatter_reduce_(1, wide[1], wide[0], "amax")
        # The first token at which each latent reaches its maximum: others are sent behind the last token.
        place = torch.arange(x.tokens, device=device).repeat_interleave(values.shape[1]).expand(n, -1)
        place = torch.where(wide[0] == strongest.gather(1, wide[1]), place, x.tokens)
        token = torch.full_like(strongest, x.tokens, dtype=torch.int64).scatter_reduce_(1, wide[1], place, "amin")
        row, column = strongest.nonzero(as_tuple=True)
        active = (values > 0).cpu().numpy()
        z = values.cpu().numpy()[active], indices.cpu().numpy()[active], np.append(0, np.cumsum(active.sum(1)))
        of_images = column.cpu().numpy(), np.append(0, np.cumsum(np.bincount(row.cpu().numpy(), minlength=n)))
        parts.append(
            (
                sparse.csr_array(z, (len(values), latents)),
                sparse.csr_array((strongest[row, column].cpu().numpy(), *of_images), (n, latents)),
                sparse.csr_array((token[row, column].cpu().numpy(), *of_images), (n, latents)),
            )
        )
    z, images, places = (sparse.vstack(part, format="csr") for part in zip(*parts, strict=True))
    z.sort_indices()
    return Codes(z, images, places, x.ids, x.tokens)
