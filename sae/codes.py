"""What the latents of an SAE do on the tokens of some images: sparse matrices, on which all evidence rests."""

from __future__ import annotations

from collections.abc import Iterator
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
    ones; int64 [n, F], an entry (also a 0) where `images` has one. norms: ‖x‖ of the tokens, float32 [n · tokens].
    ids: the images' ids [n]. tokens: how many an image has, in the order of the store.
    """

    z: sparse.csr_array
    images: sparse.csr_array
    places: sparse.csr_array
    norms: np.ndarray
    ids: np.ndarray
    tokens: int

    @property
    def latents(self) -> int:
        return self.z.shape[1]

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns row (image · tokens + token), latent and value of everything in z."""
        return np.repeat(np.arange(self.z.shape[0]), np.diff(self.z.indptr)), self.z.indices, self.z.data


def encode(sae: SparseAutoencoder, x: Activations) -> Codes:
    """Encodes all tokens of `x`."""
    blocks = list(stream(sae, x))
    z, images, places = (
        sparse.vstack([getattr(block, name) for block in blocks], format="csr") for name in ("z", "images", "places")
    )
    return Codes(z, images, places, np.concatenate([block.norms for block in blocks]), x.ids, x.tokens)


@torch.inference_mode()
def stream(sae: SparseAutoencoder, x: Activations) -> Iterator[Codes]:
    """Yields the codes of `x` by blocks of images, in the order of the ids."""
    device, latents, tokens = sae.b_dec.device, sae.settings.latents, x.tokens
    for ids, block in x.blocks(max(1, 2**23 // (tokens * latents))):
        n = len(ids)
        raw = torch.from_numpy(block.reshape(-1, x.width)).to(device).float()
        values, indices = sae.encode_sparse(raw)
        flat, flat_index = values.reshape(n, -1), indices.reshape(n, -1)
        strongest = values.new_zeros(n, latents).scatter_reduce_(1, flat_index, flat, "amax")
        # The first token at which each latent reaches its maximum: others are sent behind the last token.
        place = torch.arange(tokens, device=device).repeat_interleave(values.shape[1]).expand(n, -1)
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
            sparse.csr_array((matrix[row, column].cpu().numpy(), *pattern), (n, latents))
            for matrix in (strongest, token)
        )
        yield Codes(z, images, places, raw.norm(dim=1).cpu().numpy(), ids, tokens)
