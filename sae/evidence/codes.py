"""What the latents of an SAE do on the tokens of some images: one sparse matrix, on which all evidence rests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import sparse

from sae.activations import Activations
from sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Codes:
    """The activations of F latents on the tokens of n images.

    z: float32 [n · tokens, F], only what is above 0; row i · tokens + t is token t of image i. ids: the images' ids
    [n]. tokens: how many each image has, in the order of the store.
    """

    z: sparse.csr_array
    ids: np.ndarray
    tokens: int

    @property
    def latents(self) -> int:
        return self.z.shape[1]

    @cached_property
    def images(self) -> sparse.csr_array:
        """The strongest activation of each latent on each image, float32 [n, F]."""
        return self._strongest[0]

    @cached_property
    def places(self) -> sparse.csr_array:
        """The token, from 0, at which `images` has its value, the first of equal ones; int64 [n, F], stored beside."""
        return self._strongest[1]

    @cached_property
    def _strongest(self) -> tuple[sparse.csr_array, sparse.csr_array]:
        z = self.z
        token = np.repeat(np.arange(z.shape[0]), np.diff(z.indptr))
        image, place = np.divmod(token, self.tokens)
        key = image * self.latents + z.indices
        # By pair, within a pair by falling activation, of equal ones the first token: each pair's first is its strongest.
        order = np.lexsort((place, -z.data, key))
        first = np.flatnonzero(np.diff(key[order], prepend=-1))
        chosen = order[first]
        rows = np.bincount(image[chosen], minlength=len(self.ids))
        indptr = np.append(0, np.cumsum(rows))
        shape = (len(self.ids), self.latents)
        parts = (z.data[chosen], place[chosen])
        strongest, places = (sparse.csr_array((part, z.indices[chosen], indptr), shape=shape) for part in parts)
        return strongest, places


@torch.inference_mode()
def encode(sae: SparseAutoencoder, x: Activations) -> Codes:
    """Encodes all tokens of `x`."""
    device, parts = sae.b_dec.device, []
    for _ids, block in x.blocks(max(1, 2**23 // (x.tokens * sae.settings.latents))):
        values, indices = sae.encode_sparse(torch.from_numpy(block.reshape(-1, x.width)).to(device).float())
        values, indices = values.cpu().numpy(), indices.cpu().numpy()
        active = values > 0
        indptr = np.append(0, np.cumsum(active.sum(1)))
        parts.append(
            sparse.csr_array(
                (values[active], indices[active].astype(np.int32), indptr), (len(values), sae.settings.latents)
            )
        )
    z = sparse.vstack(parts, format="csr")
    z.sort_indices()
    return Codes(z, x.ids, x.tokens)
