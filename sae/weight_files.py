"""Weights of ViTs: the names of models, and reading files of any origin without running code from them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.errors import InputError

if TYPE_CHECKING:
    import torch

# The places where trainers put the weights inside their files, the best first.
_INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module", "teacher", "encoder")
_REMEDY = "give a .safetensors or .pth file of weights"
# The first bytes of files that are met in place of weights.
_KINDS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights: run `git lfs pull`"),
    (b"<", "a web page: its download failed"),
    (b"{", "a text file"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file, as Keras and TensorFlow write"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "an archive: unpack it"),
    (b"\xfd7zXZ", "an archive: unpack it"),
    (b"BZh", "an archive: unpack it"),
)


def timm_name(name: str) -> str:
    """Returns a model's name as timm spells it: without the prefixes with which hubs name timm's own models."""
    return re.sub(r"^(https?://(www\.)?(huggingface\.co|hf\.co)/|hf[-_]hub:)?timm/", "", name.strip()).rstrip("/")


def read(path: Path, what: str = "checkpoint") -> dict[str, torch.Tensor]:
    """Returns the weights of a file, safetensors or PyTorch's, whatever its ending; nothing in it is executed.

    Weights inside an entry such as `state_dict` or `model` are found. A prefix that all names share, such as
    Lightning's `model.`, is taken off.

    Args:
        what: The name of the file's role, with which messages begin.

    Raises:
        InputError: the file is missing, or is no file of weights; the message names its kind.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{what} {path}: {kind}; {_REMEDY}")
    try:
        content = _load(path)
    except Exception as error:
        # unpickling, safetensors, zip and system errors: each means that these are no weights that can be read.
        kind = _kind(path, error)
        raise InputError(f"{what} {path}: {kind if ':' in kind else f'{kind}; {_REMEDY}'}") from error
    weights = content
    while isinstance(weights, Mapping) and (inside := next((n for n in _INSIDE if _holds(weights.get(n))), None)):
        weights = weights[inside]
    if not _holds(weights):
        found = f"entries {', '.join(map(str, list(weights)[:4]))}" if isinstance(weights, Mapping) else "no entries"
        raise InputError(f"{what} {path}: a {type(content).__name__} with {found}, not weights; {_REMEDY}")
    named = {str(name): value for name, value in weights.items() if _is_tensor(value)}
    while len({name.partition(".")[0] for name in named}) == 1 and all("." in name for name in named):
        named = {name.partition(".")[2]: value for name, value in named.items()}
    return named


def _load(path: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    with path.open("rb") as file:
        start = file.read(9)
        if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
            return load_file(path)
        file.seek(0)  # a file, since PyTorch would go by the ending of a path
        return torch.load(file, map_location="cpu", weights_only=True)


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _holds(value: object) -> bool:
    """Returns whether this is a dict of tensors, alone or under one of the known names."""
    return isinstance(value, Mapping) and any(
        _is_tensor(entry) or (name in _INSIDE and _holds(entry)) for name, entry in value.items()
    )


def _kind(path: Path, error: Exception) -> str:
    """Returns a description of a file that is not read as weights."""
    if isinstance(error, PermissionError):
        return f"cannot be read: {error.strerror}"
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "an empty file: its download failed"
    if kind := next((kind for first, kind in _KINDS if start.lstrip().startswith(first)), None):
        return kind
    if start[8:9] == b"{":
        return "a damaged or incomplete safetensors file: download it again"
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "an incomplete PyTorch file: download it again"
    if start.startswith((b"PK", b"\x80")) and "weights_only" in str(error).lower():
        return "a file with code or whole objects, which are not run: save the model's state_dict() instead"
    return "a zip archive, not PyTorch's" if start.startswith(b"PK") else "neither safetensors nor a PyTorch file"
