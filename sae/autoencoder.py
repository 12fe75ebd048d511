"""The sparse autoencoder: encode, decode, save, load."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from sae.errors import InputError
from sae.files import read_json, whole, write_json

Array = TypeVar("Array", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class Settings:
    """What defines an SAE besides its parameters."""

    width: int  # d, of the activations
    latents: int  # F, the dictionary's size
    k: int  # latents active per token
    method: str = "topk"
    input: str = "standardised"  # or layernorm, see SparseAutoencoder
    layer: int | None = None
    tokens: str = "patches"  # which tokens it was trained on: patches, class or all

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.latents:
            raise InputError(f"k {self.k}: must lie between 1 and the number of latents, {self.latents}")
        if self.method != "topk":
            raise InputError(f"method {self.method}: no such method; there is topk")
        if self.input not in ("standardised", "layernorm"):
            raise InputError(f"input {self.input}: neither standardised nor layernorm")


class SparseAutoencoder(nn.Module):
    """A TopK sparse autoencoder (Makhzani & Frey 2013; Gao et al. 2024, arXiv 2406.04093).

    With `input` standardised, x̃ = (x - mean)·scale is what is encoded and reconstructed, mean and scale being the
    train set's (E‖x̃‖² = d):

        z = ReLU(TopK(W_enc (x̃ - b_dec) + b_enc)),    x̂ = (z W_dec + b_dec) / scale + mean

    With `input` layernorm, a LayerNorm with trained gain and bias stands in front and the raw x is reconstructed:

        z = ReLU(TopK(W_enc LN(x) + b_enc)),           x̂ = z W_dec + b_dec

    TopK keeps the k largest latents of each token (over latents, `dim=-1`) and zeroes the others.

    Parameters: W_enc [F, d], b_enc [F], W_dec [F, d] (row i is latent i's decoder direction), b_dec [d].
    Everything public takes and gives activations in the units of x.
    """

    def __init__(self, settings: Settings, mean: torch.Tensor | None = None, scale: float = 1.0):
        super().__init__()
        self.settings = settings
        d, latents = settings.width, settings.latents
        self.W_enc = nn.Parameter(torch.zeros(latents, d))
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.W_dec = nn.Parameter(torch.zeros(latents, d))
        self.b_dec = nn.Parameter(torch.zeros(d))
        if settings.input == "layernorm":
            self.norm = nn.LayerNorm(d)
        self.register_buffer("mean", torch.zeros(d) if mean is None else mean.clone())
        self.register_buffer("scale", torch.tensor(float(scale)))

    def standardise(self, x: torch.Tensor) -> torch.Tensor:
        """Raw activations [n, d] -> the space in which reconstruction is trained, [n, d]."""
        return (x - self.mean) * self.scale

    def pre_activations(self, target: torch.Tensor) -> torch.Tensor:
        """Standardised activations [n, d] -> the latents before TopK and ReLU, [n, F]."""
        centred = self.norm(target) if self.settings.input == "layernorm" else target - self.b_dec
        return F.linear(centred, self.W_enc, self.b_enc)

    def select(self, pre: torch.Tensor, k: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Pre-activations [n, F] -> (values [n, k] ≥ 0, indices [n, k]) of the k largest latents of each token."""
        values, indices = pre.topk(k or self.settings.k, dim=-1, sorted=False)
        return values.relu(), indices

    def combine(self, values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Sparse latents [n, k] -> Σ z_i W_dec[i], [n, d]; no bias, standardised units."""
        return F.embedding_bag(indices, self.W_dec, per_sample_weights=values, mode="sum")

    def encode_sparse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [n, d] -> (values [n, k], indices [n, k]); a value of 0 is a silent latent."""
        return self.select(self.pre_activations(self.standardise(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [n, d] -> its reconstruction x̂ [n, d]."""
        return (self.combine(*self.encode_sparse(x)) + self.b_dec) / self.scale + self.mean

    @torch.no_grad()
    def encode(self, x: Array) -> Array:
        """Activations [n, d], array or tensor -> latents [n, F] of the same kind, zeros where a latent is silent."""
        values, indices = self.encode_sparse(self._tensor(x, self.settings.width))
        z = values.new_zeros(len(values), self.settings.latents).scatter_(1, indices, values)
        return self._like(z, x)

    @torch.no_grad()
    def decode(self, z: Array) -> Array:
        """Latents [n, F], array or tensor -> reconstructed activations [n, d] of the same kind, in the units of x."""
        x = (self._tensor(z, self.settings.latents) @ self.W_dec + self.b_dec) / self.scale + self.mean
        return self._like(x, z)

    def save(self, folder: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Writes sae.safetensors and sae.json into `folder`."""
        folder = Path(folder)
        with whole(folder / "sae.safetensors") as part:
            save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}, part)
        write_json(folder / "sae.json", {"version": 1, **asdict(self.settings), "provenance": provenance})

    def _tensor(self, x: np.ndarray | torch.Tensor, columns: int) -> torch.Tensor:
        x = torch.as_tensor(x, dtype=torch.float32, device=self.b_dec.device)
        if x.ndim != 2 or x.shape[1] != columns:
            raise InputError(f"array of shape {tuple(x.shape)}: this SAE takes [n, {columns}] here")
        return x

    def _like(self, result: torch.Tensor, given: Array) -> Array:
        return result.to(given.device) if isinstance(given, torch.Tensor) else result.cpu().numpy()


def load(folder: str | Path, device: str | torch.device = "cpu") -> SparseAutoencoder:
    """Returns the SAE saved in `folder` (…/layer=6/k=32/method=topk/seed=0), in eval mode.

    Raises:
        InputError: there is none, or its two files do not belong together.
    """
    folder = Path(folder)
    try:
        facts = read_json(folder / "sae.json")
        weights = load_file(folder / "sae.safetensors")
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no SAE here: {Path(error.filename or folder).name} is missing") from error
    sae = SparseAutoencoder(Settings(**{name: facts[name] for name in Settings.__dataclass_fields__}))
    try:
        sae.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{folder}: sae.safetensors does not fit sae.json: {str(error).splitlines()[-1].strip()}"
        ) from error
    return sae.eval().requires_grad_(False).to(device)
