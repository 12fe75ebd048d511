"""Writes SAEs in the formats of SAELens and sparsify, after a check that these libraries will compute the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.autoencoder import PER_TOKEN, SparseAutoencoder
from sae.errors import InputError
from sae.files import whole, write_arrays

LIBRARIES = ("saelens", "sparsify")
_AGREEMENT = 0.9999  # of the entries of the codes
_TOKENS = 0.99  # have the same active latents: a tie may fall otherwise
_ERROR = 1e-5  # of the reconstructions, relative
_MADE_UP = 512  # tokens


def export(model: SparseAutoencoder, folder: str | Path, library: str, x: np.ndarray | Tensor | None = None) -> None:
    """Writes an SAE so that another library loads it, for raw activations.

    The standardisation is folded into the weights: with c = b_dec/scale + mean, x̂ = z (W_dec/scale) + c and
    z = σ(scale·W_enc (x - c) + b_enc). Load it with `sae_lens.SAE.load_from_disk(folder)` or
    `sparsify.SparseCoder.load_from_disk(folder)`.

    Args:
        folder: For cfg.json and the weights: sae_weights.safetensors (SAELens) or sae.safetensors (sparsify).
        library: saelens or sparsify.
        x: Activations [n, d] on which the exported weights are checked. None: Gaussian tokens around the mean.

    Raises:
        InputError: The format cannot express this SAE; or, computed in float32 as the library does, fewer than 99.99 %
            of the entries of z agree, fewer than 99 % of the tokens have the same active latents, or the
            reconstructions of these tokens differ by more than 1e-5.
    """
    folder, method = Path(folder), model.config.method
    if library not in LIBRARIES:
        raise InputError(f"library {library}: must be one of {', '.join(LIBRARIES)}")
    if (reason := refusal(model, library)) is not None:
        raise InputError(f"{folder}: {reason}")
    scale, mean = model.scale.double(), model.mean.double()
    arrays = {
        "W_enc": model.W_enc.double() * scale,
        "b_enc": model.b_enc.double(),
        "W_dec": model.W_dec.double() / scale,
        "b_dec": model.b_dec.double() / scale + mean,
    }
    if method not in (*PER_TOKEN, "relu"):
        arrays["threshold"] = model.threshold.double()
    arrays = {name: value.detach().float().cpu() for name, value in arrays.items()}
    _compare(model, arrays, x, folder)
    if library == "saelens":
        arrays["W_enc"] = arrays["W_enc"].T
        name, config = "sae_weights.safetensors", _saelens(model)
    else:
        arrays = {{"W_enc": "encoder.weight", "b_enc": "encoder.bias"}.get(name, name): a for name, a in arrays.items()}
        name, config = "sae.safetensors", _sparsify(model)
    write_arrays(folder / name, {key: np.ascontiguousarray(array.numpy()) for key, array in arrays.items()})
    with whole(folder / "cfg.json") as part:
        part.write_text(json.dumps(config, indent=2) + "\n")


def refusal(model: SparseAutoencoder, library: str) -> str | None:
    """Returns the reason why a library's format cannot express an SAE; None if it can."""
    if model.config.input == "layernorm":
        return (
            f"{library} has no LayerNorm in front of the encoder alone: its gain and bias fold into the weights, its "
            "division by each token's spread does not"
        )
    if library == "sparsify" and model.config.method not in PER_TOKEN:
        return f"sparsify keeps the k largest latents of each token, {model.config.method} those above a threshold"
    return None


def _saelens(model: SparseAutoencoder) -> dict[str, Any]:
    config = model.config
    kind = "topk" if config.method in PER_TOKEN else "standard" if config.method == "relu" else "jumprelu"
    hook = None if config.layer is None else f"blocks.{config.layer}.hook_resid_post"
    return {
        "architecture": kind,
        "d_in": config.width,
        "d_sae": config.latents,
        **({"k": config.k, "rescale_acts_by_decoder_norm": False} if kind == "topk" else {}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        # The version of the format; without it the file would be read as one of version 5.
        "metadata": {
            "sae_lens_version": "6.0.0",
            "hook_name": hook,
            "tokens": config.tokens,
        },
    }


def _sparsify(model: SparseAutoencoder) -> dict[str, Any]:
    config = model.config
    return {
        "activation": "topk",
        "normalize_decoder": False,
        "num_latents": config.latents,
        "k": config.k,
        "d_in": config.width,
    }


@torch.no_grad()
def _compare(model: SparseAutoencoder, arrays: dict[str, Tensor], x: np.ndarray | Tensor | None, folder: Path) -> None:
    """Raises InputError unless the folded weights, used as both libraries do, give the model's latents and x̂."""
    config = model.config
    if x is None:
        noise = torch.randn(_MADE_UP, config.width, generator=torch.Generator().manual_seed(0))
        x = model.mean.cpu() + noise / model.scale.cpu()
    rows = torch.as_tensor(x, dtype=torch.float32).cpu()
    if rows.ndim < 2 or rows.shape[-1] != config.width or not rows.numel():
        raise InputError(f"activations of shape {tuple(rows.shape)}: the check needs some in [n, {config.width}]")
    same, kept, off, size, rows = 0, 0, 0.0, 0.0, rows.flatten(0, -2)
    for part in rows.split(max(1, 2**24 // config.latents)):
        z = model.encode(part.to(model.W_enc.device)).cpu()
        pre = (part - arrays["b_dec"]) @ arrays["W_enc"].T + arrays["b_enc"]
        if config.method in PER_TOKEN:
            values, indices = pre.topk(config.k, dim=-1)
            theirs = torch.zeros_like(pre).scatter_(-1, indices, values.relu())
        else:
            theirs = pre * (pre > arrays.get("threshold", torch.zeros(())))
        same += int(((theirs - z).abs() <= 1e-3 * z.abs() + 1e-6 * float(z.abs().max())).sum())
        alike = ((theirs > 0) == (z > 0)).all(1)
        kept += int(alike.sum())
        x_hat = model.decode(z[alike].to(model.W_enc.device)).cpu()
        off += float((theirs[alike] @ arrays["W_dec"] + arrays["b_dec"] - x_hat).double().square().sum())
        size += float(x_hat.double().square().sum())
    agreement, tokens = same / (len(rows) * config.latents), kept / len(rows)
    error = (off / max(size, 1e-30)) ** 0.5
    if agreement < _AGREEMENT or tokens < _TOKENS or error > _ERROR:
        raise InputError(
            f"{folder}: folding the standardisation into float32 weights would change the SAE: {agreement:.4%} of the "
            f"entries agree (needed: {_AGREEMENT:.2%}), {tokens:.2%} of the tokens have the same latents (needed: "
            f"{_TOKENS:.0%}), reconstructions differ by {error:.1e} (allowed: {_ERROR:.0e})"
        )
