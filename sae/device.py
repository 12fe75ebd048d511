"""The choice of the device, and products of matrices on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from sae.errors import InputError

_ONEDNN: set[torch.dtype] = set()  # number formats that oneDNN multiplies on this machine
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _ONEDNN.add(torch.float32)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _ONEDNN.add(torch.bfloat16)


def resolve(name: str = "auto") -> torch.device:
    """Returns the device called `auto` (CUDA where there is one, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        InputError: the name is none of these, or this machine has no such device.
    """
    mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and (kind != "cuda" or not number.isdecimal())):
        raise InputError(f"device {name}: no such name; write auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name}: this machine has no CUDA device that torch can use; write auto or cpu")
    if number and int(number) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise InputError(f"device {name}: this machine has cuda:0..{last}; choose one of these, auto or cpu")
    if kind == "mps" and not mps:
        raise InputError("device mps: this machine has no Apple GPU that torch can use; write auto or cpu")
    if kind == "cuda":
        # cuBLAS is deterministic only with workspaces of a fixed size. It reads this when CUDA is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if number:
            torch.cuda.set_device(int(number))  # where Triton's kernels run
    return torch.device(name)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Context: torch uses only operations that give bitwise identical results in every run on this device.

    Raises:
        RuntimeError: an operation has no deterministic form. On a CPU all operations are deterministic.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # a module with a property, unknown to type checkers
    fill = settings.fill_uninitialized_memory
    if device.type != "cpu":
        torch.use_deterministic_algorithms(True)
        settings.fill_uninitialized_memory = False  # all memory is written before it is read, so filling it is a waste
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill


def _capabilities() -> dict[str, Any]:
    return getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot tell


def fast_bf16(device: torch.device) -> bool:
    """Returns whether this device multiplies matrices of bfloat16 faster than those of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = _capabilities()
    return device.type == "cpu" and bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def fast_int8(device: torch.device) -> bool:
    """Returns whether this device multiplies matrices of int8, exactly, faster than those of bfloat16."""
    able = _capabilities()
    there = torch.backends.mkldnn.is_available() and hasattr(torch, "_int_mm")
    return device.type == "cpu" and there and bool(able.get("amx_int8") or able.get("avx512_vnni")) and _exact_int8()


@cache
def _exact_int8() -> bool:
    """Returns whether products of int8 are exact: with older instructions, sums overflow in oneDNN."""
    a = torch.full((32, 64), 127, dtype=torch.int8)
    try:
        return bool((torch._int_mm(a, a.T) == 64 * 127**2).all())
    except RuntimeError:  # this torch has it for GPUs alone
        return False


def linear(x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., d] -> x weightsᵀ + bias, [..., F]; not to be differentiated.

    On a CPU by oneDNN where it can: torch itself gives float32 to MKL, which takes twice the time on AMD's.
    """
    if x.device.type != "cpu" or x.dtype not in _ONEDNN:
        return F.linear(x, weights, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weights, bias, "none", [], "")
