"""The sparse autoencoder: encode, decode, save, load."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sae import device as devices
from sae.errors import InputError
from sae.files import read_arrays, read_json, write_arrays, write_json

try:
    from sae.kernels import topk
except ImportError:  # no numba for this machine or Python: the same latents, slower
    topk = None  # type: ignore[assignment]  # a module everywhere else

Array = TypeVar("Array", np.ndarray, torch.Tensor)
INPUTS = ("standardised", "layernorm")
TOKENS = ("patches", "class", "all")
METHODS = ("topk", "batchtopk", "matryoshka", "archetypal", "relu", "jumprelu")
BASELINES = ("neurons", "pca", "ica", "kmeans", "random", "sampled", "frozen", "soft_frozen", "frozen_encoder")
PER_TOKEN = ("topk", "matryoshka", "archetypal", *BASELINES)  # k latents on each token


@dataclass(frozen=True)
class SAEConfig:
    """The configuration of an SAE, besides its parameters.

    Attributes:
        width: d, of the activations.
        latents: F, the size of the dictionary.
        k: Latents active per token; on average where the method lets tokens differ.
        method: One of METHODS or BASELINES.
        input: standardised or layernorm, see `SparseAutoencoder`.
        layer: The ViT's block whose output it was trained on; None: unknown.
        tokens: The tokens it was trained on: patches, class or all.
    """

    width: int
    latents: int
    k: int
    method: str = "topk"
    input: str = "standardised"
    layer: int | None = None
    tokens: str = "patches"

    def __post_init__(self) -> None:
        for name in ("width", "latents", "k"):
            if not isinstance(value := getattr(self, name), int | np.integer):
                raise InputError(f"{name} {value!r}: must be a whole number")
        if not 1 <= self.k <= self.latents:
            raise InputError(f"k {self.k}: must lie between 1 and the number of latents, {self.latents}")
        for name, known in (("method", METHODS + BASELINES), ("input", INPUTS), ("tokens", TOKENS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} {getattr(self, name)}: must be one of {', '.join(known)}")


class SparseAutoencoder(nn.Module):
    """A sparse autoencoder with F latents; about k of them are active on a token.

    With `input` standardised, the SAE encodes and reconstructs x̃ = (x - mean)·scale, with mean and scale of the train
    set (E‖x̃‖² = d):

        z = σ(W_enc (x̃ - b_dec) + b_enc),    x̂ = (z W_dec + b_dec) / scale + mean

    With `input` layernorm, a LayerNorm with trained gain and bias stands in front and the raw x is reconstructed:

        z = σ(W_enc LN(x) + b_enc),           x̂ = z W_dec + b_dec

    σ is the method's; training gives all of them the same k, so that they can be compared:

        topk, matryoshka,     ReLU of the k largest latents of each token (over latents, `dim=-1`), 0 elsewhere;
        archetypal            so with the dictionaries that are no SAEs, see `baselines`
        batchtopk, jumprelu   the latents above their `threshold` [F] > 0, unchanged; 0 elsewhere
        relu                  ReLU

    Sources: TopK, Makhzani & Frey 2013 and Gao et al. 2024 (arXiv 2406.04093); BatchTopK, Bussmann et al. 2024 (arXiv
    2412.06410); Matryoshka, Bussmann et al. 2025 (arXiv 2503.17547); archetypal, after Fel et al. 2025 (arXiv
    2502.12892), with one centre for each latent; ReLU with L1, Bricken et al. 2023 (Towards
    Monosemanticity); JumpReLU, Rajamanoharan et al. 2024 (arXiv 2407.14435).

    Parameters: W_enc [F, d], b_enc [F], W_dec [F, d] (row i is latent i's decoder direction), b_dec [d].
    All public methods take and return activations in the units of x, unless they say otherwise.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: SAEConfig, mean: torch.Tensor | None = None, scale: float = 1.0):
        super().__init__()
        self.config = config
        d, latents = config.width, config.latents
        self.W_enc = nn.Parameter(torch.zeros(latents, d))
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.W_dec = nn.Parameter(torch.zeros(latents, d))
        self.b_dec = nn.Parameter(torch.zeros(d))
        if config.method in ("batchtopk", "jumprelu"):
            # JumpReLU alone trains it as a parameter; BatchTopK measures it.
            self.threshold = nn.Parameter(torch.zeros(latents), requires_grad=config.method == "jumprelu")
        if config.input == "layernorm":
            self.norm = nn.LayerNorm(d)
        self.register_buffer("mean", torch.zeros(d) if mean is None else mean.clone())
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.record: dict[str, Any] | None = None  # how it was trained: tokens, steps, precision, device

    def standardise(self, x: torch.Tensor) -> torch.Tensor:
        """Raw activations [n, d] -> the input of the training loss, [n, d]; standardised, or raw with `layernorm`."""
        return (x - self.mean) * self.scale

    def pre_activations(self, target: torch.Tensor) -> torch.Tensor:
        """Standardised activations [n, d] -> the latents before TopK and ReLU, [n, F]."""
        centred = self.norm(target) if self.config.input == "layernorm" else target - self.b_dec
        product = F.linear if torch.is_grad_enabled() else devices.linear
        return product(centred, self.W_enc, self.b_enc)

    def select(self, pre: torch.Tensor, k: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Pre-activations [n, F] -> (values [n, m] ≥ 0, indices [n, m]) of the active latents of each token.

        Args:
            k: the number of largest latents to keep, in place of the SAE's k. None: the method's own rule. m is k, or
                the largest number of active latents on a token.

        A token with fewer than m active latents is filled up with arbitrary latents of value 0.
        """
        if k is None and self.config.method in PER_TOKEN:
            k = self.config.k
        elif k is None:
            pre = pre.relu() if self.config.method == "relu" else pre * (pre > self.threshold)
            k = max(1, int((pre > 0).sum(-1).max())) if len(pre) else 1
        if topk is None or pre.device.type != "cpu" or pre.requires_grad:
            values, indices = pre.topk(k, dim=-1, sorted=False)
            return values.relu(), indices
        values, indices = torch.empty(len(pre), k, dtype=pre.dtype), torch.empty(len(pre), k, dtype=torch.int32)
        integer = {4: torch.int32, 8: torch.int64}[pre.element_size()]
        bits, places = pre.contiguous().view(integer).numpy(), values.view(integer).numpy()
        topk.largest(bits, k, 0, 0, indices.numpy(), places)  # a tenth of topk's time
        return values, indices.long()

    def combine(self, values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Sparse latents [n, m] -> Σ z_i W_dec[i], [n, d]; no bias, standardised units."""
        return F.embedding_bag(indices, self.W_dec, per_sample_weights=values, mode="sum")

    def encode_sparse(self, x: torch.Tensor, k: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x [n, d] -> (values [n, m], indices [n, m]), as `select` does; a value of 0 is a silent latent."""
        return self.select(self.pre_activations(self.standardise(x)), k)

    def reconstruct(self, values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Sparse latents [n, m] -> reconstructed activations x̂ [n, d], in the units of x."""
        return (self.combine(values, indices) + self.b_dec) / self.scale + self.mean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [n, d] -> its reconstruction x̂ [n, d]."""
        return self.reconstruct(*self.encode_sparse(x))

    @torch.no_grad()
    def encode(self, x: Array, k: int | None = None) -> Array:
        """Activations [..., d], array or tensor -> latents [..., F] of the same kind, zeros where a latent is silent.

        Args:
            k: keep the k largest latents of each token, in place of the method's own rule. None: the method's rule.

        Raises:
            InputError: x has another width, or k is not between 1 and F.
        """
        if k is not None and not 1 <= k <= self.config.latents:
            raise InputError(f"k {k}: must lie between 1 and the number of latents, {self.config.latents}")
        rows = self._tensor(x, self.config.width)
        values, indices = self.encode_sparse(rows.flatten(0, -2), k)
        z = values.new_zeros(len(values), self.config.latents).scatter_reduce_(1, indices, values, "amax")
        return self._like(z.reshape(*rows.shape[:-1], self.config.latents), x)

    @torch.no_grad()
    def decode(self, z: Array) -> Array:
        """Latents [..., F], array or tensor -> reconstructed activations [..., d] of the same kind, in the units of x.

        Raises:
            InputError: z has another width.
        """
        x = (self._tensor(z, self.config.latents) @ self.W_dec + self.b_dec) / self.scale + self.mean
        return self._like(x, z)

    def save(self, folder: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Writes sae.safetensors and sae.json into `folder`."""
        folder = Path(folder)
        arrays = {name: value.detach().cpu().numpy() for name, value in self.state_dict().items()}
        write_arrays(folder / "sae.safetensors", arrays)
        facts = {"version": 2, **asdict(self.config), "training": self.record, "provenance": provenance}
        write_json(folder / "sae.json", facts)

    def _tensor(self, x: np.ndarray | torch.Tensor, columns: int) -> torch.Tensor:
        x = torch.as_tensor(x, dtype=torch.float32, device=self.b_dec.device)
        if x.ndim < 2 or x.shape[-1] != columns:
            raise InputError(f"array of shape {tuple(x.shape)}: this SAE needs an array [n, {columns}]")
        return x

    def _like(self, result: torch.Tensor, given: Array) -> Array:
        return result.to(given.device) if isinstance(given, torch.Tensor) else result.cpu().numpy()


def gain(model: SparseAutoencoder, target: torch.Tensor) -> float:
    """Returns the c with the least squared error over standardised tokens [m, d]: Σ x̃·x̂ / Σ ‖x̂‖²."""
    along = square = 0.0
    with torch.inference_mode():
        for part in target.split(max(1, 2**23 // model.config.latents)):
            guess = model.combine(*model.select(model.pre_activations(part), model.config.k)).double()
            along += float((part * guess).sum())
            square += float(guess.square().sum())
    return along / max(square, 1e-30)


def load(folder: str | Path, device: str | torch.device = "cpu") -> SparseAutoencoder:
    """Returns the SAE saved in `folder` (…/layer=6/k=32/method=topk/seed=0), in eval mode.

    Raises:
        InputError: the folder holds no SAE, a file is damaged, or the two files do not fit each other.
    """
    folder = Path(folder)
    try:
        facts, weights = read_json(folder / "sae.json"), read_arrays(folder / "sae.safetensors")[0]
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no SAE here: {Path(error.filename or folder).name} is missing") from error
    except NotADirectoryError as error:
        raise InputError(f"{folder}: is a file; give the folder that holds sae.json and sae.safetensors") from error
    try:
        config = SAEConfig(**{name: facts[name] for name in SAEConfig.__dataclass_fields__})
        record = facts["training"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'sae.json'}: not the facts of an SAE: {error} is missing or wrong") from error
    except InputError as error:
        raise InputError(f"{folder / 'sae.json'}: not the facts of an SAE: {error}") from error
    shape = tuple(weights["W_enc"].shape) if "W_enc" in weights else None
    if shape != (config.latents, config.width):  # before memory is taken for the sizes in sae.json
        wanted = [config.latents, config.width]
        raise InputError(f"{folder}: sae.safetensors does not fit sae.json: W_enc has shape {shape}, not {wanted}")
    model = SparseAutoencoder(config)
    try:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    except RuntimeError as error:
        raise InputError(
            f"{folder}: sae.safetensors does not fit sae.json: {str(error).splitlines()[-1].strip()}"
        ) from error
    model.record = record
    return model.eval().requires_grad_(False).to(device)
