"""Reads SAEs that other libraries trained: SAELens, sparsify, saev, and plain files of weights.

Each becomes a `SparseAutoencoder` with the same latents and reconstructions, for raw activations. An SAE for which this
is impossible is refused with the reason. One difference stays: saev's TopK keeps negative values among the k largest,
which count as silent here. Nothing in a file is executed.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from sae import autoencoder, weight_files
from sae.autoencoder import SAEConfig, SparseAutoencoder
from sae.errors import InputError
from sae.store import Activations, moments

_FORMATS = (
    "sae.json and sae.safetensors (this project), cfg.json and sae_weights.safetensors (SAELens), "
    "cfg.json and sae.safetensors (sparsify), sae.pt (saev), or one .safetensors file"
)
_ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec")
# Keys of sparsify, its predecessor and forks, with which the k largest latents do not give the reconstruction.
_OTHER_RULES = {
    "transcode": "it predicts another layer",
    "skip_connection": "it adds a linear map of x",
    "signed": "its largest latents may be negative",
    "batch_topk": "the tokens of a batch share their latents",
    "sample_topk": "the tokens of a sample share their latents",
}
_CHECKED = 4096  # tokens on which an imported SAE has to explain something


@dataclass(frozen=True)
class _Foreign:
    """An SAE as its file has it: z = σ(W_enc (x - b_dec) + b_enc), or without b_dec; x̂ = z W_dec + b_dec.

    σ keeps the `k` largest latents, or those above their `threshold`, or those above 0. W_enc is [F, d].
    """

    library: str
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    subtracts: bool = True
    k: int | None = None
    threshold: Tensor | None = None
    layer: int | None = None
    tokens: str | None = None


def load(path: str | Path, device: str | torch.device = "cpu") -> SparseAutoencoder:
    """Returns an SAE of this project or of another library, in eval mode.

    `encode` and `decode` then take and give raw activations, with the other library's own normalisation.

    Args:
        path: A folder of this project (…/layer=6/k=32/method=topk/seed=0), of SAELens or of sparsify; a file `sae.pt`
            of saev; or a .safetensors file with W_enc [F, d] or [d, F], b_enc [F], W_dec [F, d] and b_dec [d]. Such a
            file may have a number `k` for TopK, or a `threshold` [F] for JumpReLU; without them it is a ReLU SAE. Its
            encoder reads x - b_dec, or x where there is a number `apply_b_dec_to_input` of 0.
        device: The device of the weights.

    Returns:
        The SAE. Where an SAE's files do not tell its number of active latents per token, `config.k` is 1; it changes
        nothing. `record` names the library.

    Raises:
        InputError: There is no SAE, a file is damaged, or the SAE cannot be expressed here; the message says why.
    """
    path = Path(path).expanduser()
    if (path / "sae.json").exists() or _is_empty_place(path):
        return autoencoder.load(path, device)
    found = _read(path)
    _check(found, path)
    return _expressed(found).to(device)


def imported(path: str | Path, layer: int, k: int, tokens: str, x: Activations) -> SparseAutoencoder:
    """Returns the SAE of another library as a point of a grid, after a check that it belongs there.

    Args:
        k: The grid's number of active latents per token.
        tokens: The tokens that it is used on: patches, class or all.
        x: Train activations of the layer, of which a few are looked at.

    Raises:
        InputError: As `load`; the SAE's width, layer or k is another; or it explains none of the activations' variance.
    """
    path = Path(path).expanduser()
    model = load(path)
    config, source = model.config, f"imported SAE {path}"
    if config.width != x.width:
        raise InputError(f"{source}: its width is {config.width}, that of the layer {x.width}; is it of this ViT?")
    ours = "imported_from" not in (model.record or {})
    if config.layer not in (None, layer):
        raise InputError(f"{source}: it was trained on layer {config.layer}, not on layer {layer}")
    if (ours or "tokens" in (model.record or {})) and config.tokens != tokens:
        raise InputError(f"{source}: it was trained on the tokens {config.tokens}, not on {tokens}; set the key tokens")
    if (ours or config.method in autoencoder.PER_TOKEN) and config.k != k:
        raise InputError(f"{source}: it keeps {config.k} latents per token; set grid.ks to [{config.k}]")
    if k > config.latents:
        raise InputError(f"{source}: it has {config.latents} latents, fewer than the k of {k}")
    model.config = replace(config, k=k, layer=layer, tokens=tokens)
    few = Activations.of(x.read(np.unique(np.linspace(0, len(x) - 1, max(1, _CHECKED // x.tokens)).astype(int))))
    rows = torch.from_numpy(few.read(np.arange(len(few)))[:, 0]).float()
    with torch.inference_mode():
        values, indices = model.encode_sparse(rows)
        error = float((model.reconstruct(values, indices) - rows).square().sum(1).double().mean())
    variance, l0 = float(moments(few)[1].sum()), float((values > 0).sum(1).double().mean())
    if not variance > 0:
        raise InputError(f"{source}: the activations of layer {layer} do not vary, so nothing can be checked")
    if not (fvu := error / variance) < 1:
        reason = "worse than the mean activation; is it of this ViT, this layer and these tokens?"
        raise InputError(f"{source}: its reconstructions miss {fvu:.2f} of the variance of layer {layer}, {reason}")
    model.record = (model.record or {}) | {"l0": l0, "fvu": fvu}
    return model


def _is_empty_place(path: Path) -> bool:
    """Returns whether nothing of another library is here, so that the message for our own SAEs fits."""
    return not path.exists() or (path.is_dir() and not any((path / name).exists() for name in ("cfg.json", "sae.pt")))


def _read(path: Path) -> _Foreign:
    if path.is_dir() and (path / "cfg.json").exists():
        config = _json(path / "cfg.json")
        if (path / "sae_weights.safetensors").exists():
            return _saelens(config, path)
        if (path / "sae.safetensors").exists():
            return _sparsify(config, path)
        raise InputError(f"{path}: cfg.json is here, the weights are not; needed: {_FORMATS}")
    file = path / "sae.pt" if path.is_dir() else path
    with file.open("rb") as opened:
        start = opened.read(9)
    if start[:1] == b"{":
        return _saev(file)
    if start[8:9] == b"{":
        return _plain(file)
    raise InputError(f"{file}: not the file of an SAE; needed: {_FORMATS}")


def _saelens(config: dict[str, Any], path: Path) -> _Foreign:
    """SAELens, sae.py and its architectures, version 6; cfg.json of versions 3 to 5 too."""
    names = {"activation_fn_str": "activation_fn", "hook_point": "hook_name"}
    config = {names.get(name, name): value for name, value in config.items()}
    kind, refuse = config.get("architecture", "standard"), _refuser(path, "SAELens")
    arguments, metadata = _section(config, "activation_fn_kwargs", path), _section(config, "metadata", path)
    if config.get("activation_fn") == "topk":
        kind, config["k"] = "topk", arguments.get("k")
    elif config.get("activation_fn", "relu") != "relu":
        refuse(f"activation_fn {config['activation_fn']}: only relu and topk can be expressed")
    if kind not in ("standard", "topk", "jumprelu"):
        hint = "; save it with save_inference_model" if "batchtopk" in str(kind) else ""
        refuse(f"architecture {kind}: only standard, topk and jumprelu can be expressed{hint}")
    norm = config.get("normalize_activations") or "none"
    if norm in ("layer_norm", "constant_norm_rescale"):
        refuse(
            f"normalize_activations {norm}: each token's reconstruction is scaled by that token's norm, so that its "
            "latents have no fixed direction in the ViT"
        )
    if norm != "none":
        refuse(f"normalize_activations {norm}: the factor is not in the files; fold it into the weights and save again")
    if config.get("reshape_activations", "none") != "none":
        refuse(f"reshape_activations {config['reshape_activations']}: it reads the heads of an attention layer")
    jumps = kind == "jumprelu"
    needed = (*_ARRAYS, "threshold") if jumps else _ARRAYS
    arrays = _weights(path / "sae_weights.safetensors", needed, "SAELens", ("scaling_factor",))
    scaling = arrays.get("scaling_factor")
    if scaling is not None and not bool((scaling == 1).all()):
        refuse("a finetuning scaling factor cannot be expressed")
    W_enc, b_enc, W_dec = arrays["W_enc"].T, arrays["b_enc"], arrays["W_dec"]
    if kind == "topk" and config.get("rescale_acts_by_decoder_norm"):
        norms = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norms[:, None], b_enc * norms, W_dec / norms[:, None]
    hook = metadata.get("hook_name") or config.get("hook_name")
    if "{layer}" in str(hook):
        hook = str(hook).format(layer=config.get("hook_point_layer", config.get("hook_layer")))
    return _Foreign(
        "SAELens",
        W_enc,
        b_enc,
        W_dec,
        arrays["b_dec"],
        bool(config.get("apply_b_dec_to_input", True)),
        _number(config.get("k"), path) if kind == "topk" else None,
        # SAELens applies a ReLU first, so that a threshold below 0, as a last step of training leaves it, counts as 0.
        arrays["threshold"].clamp(min=0) if jumps else None,
        _layer(hook, refuse),
        metadata.get("tokens") if metadata.get("tokens") in autoencoder.TOKENS else None,
    )


def _sparsify(config: dict[str, Any], path: Path) -> _Foreign:
    """sparsify's SparseCoder, version 1, and its predecessor `sae`."""
    refuse = _refuser(path, "sparsify")
    if config.get("activation", "topk") != "topk":
        refuse(f"activation {config['activation']}: only topk can be expressed")
    for key, meaning in _OTHER_RULES.items():
        if config.get(key):
            refuse(f"{key}: {meaning}")
    arrays = _weights(path / "sae.safetensors", ("encoder.weight", "encoder.bias", "W_dec", "b_dec"), "sparsify")
    W_enc, b_enc = arrays["encoder.weight"], arrays["encoder.bias"]
    return _Foreign("sparsify", W_enc, b_enc, arrays["W_dec"], arrays["b_dec"], k=_number(config.get("k"), path))


def _saev(file: Path) -> _Foreign:
    """saev's nn.dump, schema 2 to 5: a line of JSON, then a state_dict."""
    refuse = _refuser(file, "saev")
    with file.open("rb") as opened:
        try:
            header = json.loads(opened.readline())
            activation = header["cfg"]["activation"]
            kind, parameters = activation["cls"], dict(activation["params"])
            if header["schema"] not in range(2, 6):
                raise ValueError(header["schema"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: its first line is not the header of a saev checkpoint, schema 2 to 5") from error
        try:
            arrays = torch.load(io.BytesIO(opened.read()), map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds: each means that this is no state_dict
            raise InputError(f"{file}: the weights behind its first line cannot be read: {error}") from error
    if kind not in ("TopK", "BatchTopK", "Relu"):
        refuse(f"activation {kind}: only TopK, BatchTopK and Relu can be expressed")
    arrays = _named(arrays, _ARRAYS, file, "saev", ("activation.threshold",))
    W_enc, b_enc, W_dec, b_dec = (arrays[name] for name in _ARRAYS)
    k = _number(parameters.get("top_k"), file) if kind == "TopK" else None
    threshold = None
    if kind == "BatchTopK":
        if (cut := arrays.get("activation.threshold")) is None or cut.numel() != 1:
            refuse("BatchTopK without a stored threshold, as early versions saved it: nothing tells which latents fire")
        threshold = torch.full_like(b_enc, max(0.0, float(cut)))
    return _Foreign("saev", W_enc.T, b_enc, W_dec, b_dec, False, k, threshold)


def _plain(file: Path) -> _Foreign:
    if (file.parent / "sae.json").exists():
        raise InputError(f"{file}: is a file; give the folder that holds sae.json and sae.safetensors")
    arrays = _weights(file, _ARRAYS, "plain", ("k", "threshold", "apply_b_dec_to_input"))
    W_enc, b_enc, W_dec, b_dec = (arrays[name] for name in _ARRAYS)
    if len(b_enc) == len(b_dec):
        ambiguous = "as many latents as dimensions, so W_enc could be [F, d] or [d, F]"
        raise InputError(f"{file}: {ambiguous}; save it in SAELens's format")
    if tuple(W_enc.shape) == (len(b_dec), len(b_enc)):
        W_enc = W_enc.T
    if "k" in arrays and "threshold" in arrays:
        raise InputError(f"{file}: has a k and a threshold; keep the one that its SAE uses")
    for name in ("k", "apply_b_dec_to_input"):
        if name in arrays and arrays[name].numel() != 1:
            raise InputError(f"{file}: {name} has shape {tuple(arrays[name].shape)}: must be one number")
    k = _number(float(arrays["k"]), file) if "k" in arrays else None
    subtracts = bool(arrays.get("apply_b_dec_to_input", torch.ones(())))
    return _Foreign("plain", W_enc, b_enc, W_dec, b_dec, subtracts, k, arrays.get("threshold"))


def _check(found: _Foreign, path: Path) -> None:
    """Raises InputError unless the weights fit together and can be expressed."""
    latents, width = found.W_enc.shape if found.W_enc.ndim == 2 else (0, 0)
    shapes = {"W_enc": (latents, width), "b_enc": (latents,), "W_dec": (latents, width), "b_dec": (width,)}
    if found.threshold is not None:
        shapes["threshold"] = (latents,)
    for name, shape in shapes.items():
        array = getattr(found, name)
        if tuple(array.shape) != shape or not array.numel():
            raise InputError(f"{path}: {name} has shape {tuple(array.shape)}, which does not fit the other weights")
        if not bool(array.isfinite().all()):
            raise InputError(f"{path}: {name} holds numbers that are not finite")
    if found.k is not None and not 1 <= found.k <= latents:
        raise InputError(f"{path}: k {found.k} does not fit {latents} latents")
    if found.threshold is not None and bool((found.threshold < 0).any()):
        raise InputError(f"{path}: a threshold below 0 lets negative latents pass, which cannot be expressed")


def _expressed(found: _Foreign) -> SparseAutoencoder:
    latents, width = found.W_enc.shape
    method = "topk" if found.k is not None else "relu" if found.threshold is None else "jumprelu"
    tokens = found.tokens or "patches"
    model = SparseAutoencoder(SAEConfig(width, latents, found.k or 1, method, layer=found.layer, tokens=tokens))
    b_enc = found.b_enc.double()
    if not found.subtracts:  # this project's encoder reads x - b_dec
        b_enc = b_enc + found.W_enc.double() @ found.b_dec.double()
    arrays = {"W_enc": found.W_enc, "b_enc": b_enc, "W_dec": found.W_dec, "b_dec": found.b_dec}
    if found.threshold is not None:
        arrays["threshold"] = found.threshold
    with torch.no_grad():
        for name, array in arrays.items():
            getattr(model, name).copy_(array)
    model.record = {"imported_from": found.library} | ({} if found.tokens is None else {"tokens": found.tokens})
    return model.eval().requires_grad_(False)


def _layer(hook: object, refuse: Callable[[str], NoReturn]) -> int | None:
    """Returns the layer of a hook's name as TransformerLens spells it; None if it is spelt otherwise or missing."""
    if "hook_" not in str(hook):
        return None
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(post|pre)", str(hook))
    layer = int(match[1]) - (match[2] == "pre") if match else -1
    if layer < 0:
        refuse(f"it was trained on {hook}; this project reads the residual stream after a block")
    return layer


def _refuser(path: Path, library: str) -> Callable[[str], NoReturn]:
    def refuse(reason: str) -> NoReturn:
        raise InputError(f"{path}: this SAE of {library} cannot be used here: {reason}")

    return refuse


def _number(value: object, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        raise InputError(f"{path}: k {value!r}: must be a whole number")
    return int(value)


def _section(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    if not isinstance(found := config.get(name) or {}, dict):
        raise InputError(f"{path / 'cfg.json'}: {name} is not a table of settings")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a table of settings")
    return content


def _weights(file: Path, names: Sequence[str], library: str, optional: Sequence[str] = ()) -> dict[str, Tensor]:
    return _named(weight_files.read(file, "SAE"), names, file, library, optional)


def _named(
    arrays: Mapping[str, Tensor], names: Sequence[str], file: Path, library: str, optional: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Returns the arrays as float32.

    Raises:
        InputError: One is missing, or there is an unknown one, which could change the SAE.
    """
    if missing := [name for name in names if name not in arrays]:
        raise InputError(f"{file}: not the weights of a {library} SAE: {missing[0]} is missing")
    if unknown := [name for name in arrays if name not in (*names, *optional)]:
        raise InputError(f"{file}: a {library} SAE has no {unknown[0]}, so its latents could differ")
    return {name: array.float() for name, array in arrays.items()}
