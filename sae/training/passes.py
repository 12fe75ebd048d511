"""The parts of a sparse step: reused memory, the encoder's product, and one pass over a batch."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sae import device as devices
from sae.kernels import step, topk

PRE_ACTIVATIONS = 3 * 2**18  # how many a thread holds at once
_INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}

# Offsets [n + 1]; latents and values of all tokens, one after another.
Codes = tuple[np.ndarray, np.ndarray, np.ndarray]


class Memory:
    """Arrays with arbitrary content, reused in every step: new memory pages cost a tenth of a step.

    Args:
        low: Type of the numbers that are multiplied.
    """

    def __init__(self, low: torch.dtype):
        self._low = low
        self._kept: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Returns the array of this name, of this shape."""
        size = math.prod(shape)
        if name not in self._kept or len(self._kept[name]) < size:
            self._kept[name] = _aligned(size, dtype)
        return self._kept[name][:size].reshape(shape)

    def low(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """As `array`, for numbers that are multiplied."""
        integer = {2: np.int16, 4: np.int32, 8: np.int64}[self._low.itemsize]
        return torch.from_numpy(self.array(name, shape, integer)).view(self._low)

    def products(self, rows: int, latents: int) -> torch.Tensor:
        """Returns memory for integer products, int32 [rows, latents], separate for each thread."""
        return torch.from_numpy(self.array(f"products {threading.get_ident()}", (rows, latents), np.int32))


@dataclass(frozen=True)
class Encoder:
    """The encoder's product.

    Attributes:
        memory: For products of integers.
        seen: The encoder's input [n, d].
        seen_scales: [n], factors of the input's rows, where they are int8.
        weights: The folded encoder [F, d].
        weight_scales: [F], factors of its rows, where they are int8.
        bias: [F].
    """

    memory: Memory
    seen: torch.Tensor
    seen_scales: np.ndarray
    weights: torch.Tensor
    weight_scales: np.ndarray
    bias: torch.Tensor

    @property
    def mantissa(self) -> int:
        """Number of a pre-activation's bits behind its exponent."""
        return {torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}[self.bias.dtype]

    @property
    def shift(self) -> int:
        """Number of bits by which the codes' values are longer than the product's: bfloat16 becomes float32."""
        return 16 if self.bias.dtype == torch.bfloat16 else 0

    def bits(self, first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the pre-activations of these rows in blocks: first row, block [m, F] as integers of the same bits."""
        size = max(32, PRE_ACTIVATIONS // len(self.bias))
        for row in range(first, last, size):
            seen = self.seen[row : min(row + size, last)]
            if self.weights.dtype == torch.int8:
                out = self.memory.products(len(seen), len(self.bias))
                products = torch._int_mm(seen, self.weights.T, out=out).numpy()
                step.dequantise(products, self.seen_scales[row:], self.weight_scales, self.bias.numpy())
                yield row, products
            else:
                pre = devices.linear(seen, self.weights, self.bias)
                yield row, pre.view(_INTEGERS[self.bias.dtype]).numpy()


class Pass:
    """The codes of a batch, chosen, decoded and sorted by chunk and latent; `kernels.step` explains the arrays.

    Args:
        role: Keeps the arrays of two passes apart that are in use at once.
        rows: Tokens in a chunk.
        u: The batch, as the encoder's gradient needs it [n, d].
        decoder: [F, d], as it is multiplied.
        ends: Of the prefixes that reconstruct on their own.
        codes: Chosen already, or room for them.
    """

    def __init__(
        self,
        role: str,
        rows: int,
        u: torch.Tensor,
        encoder: Encoder,
        decoder: torch.Tensor,
        ends: list[int],
        codes: Codes,
    ):
        memory, (n, width) = encoder.memory, u.shape
        self._u, self._encoder, self._decoder, self._ends = plain(u), encoder, plain(decoder), np.array(ends)
        self._codes, self._rows = codes, rows
        values = codes[2]
        chunks, real, size = -(-n // rows), values.dtype, values.shape
        self._slopes, self._z, self._g = (memory.array(f"{role}{name}", size, real) for name in ("slopes", "z", "g"))
        self._tokens = memory.array(f"{role}tokens", size, np.int32)
        self.starts = memory.array(f"{role}starts", (chunks, len(decoder) + 1), np.int64)
        self.missed = plain(memory.low(f"{role}missed", (len(ends), n, width)))
        self.by_bias = memory.array(f"{role}by_bias", (chunks, width), real)
        self.squares = np.empty((chunks, len(ends)))

    def choose(self, first: int, last: int, k: int) -> None:
        """Chooses the k largest latents of a chunk's tokens."""
        _offsets, latents, values = self._codes
        places = latents.reshape(-1, k), bits(values).reshape(-1, k)
        for row, block in self._encoder.bits(first, last):
            topk.largest(block, k, row, self._encoder.shift, *places)

    def decode(self, first: int, last: int, bias: np.ndarray, target: np.ndarray, sign: int = 1) -> None:
        """Decodes a chunk, compares it with sign · target [n, d], sorts its codes."""
        chunk, sign = first // self._rows, bias.dtype.type(sign)
        found = self.missed, self._slopes, self.squares[chunk], self.by_bias[chunk]
        step.errors(first, last, *self._codes, self._decoder, bias, target, sign, self._ends, *found)
        step.by_latent(first, last, *self._codes, self._slopes, self.starts[chunk], self._tokens, self._z, self._g)

    def by_latent(self, factor: float) -> tuple[Any, ...]:
        """Returns the arguments of `step.gradients` for this pass, whose loss has a factor."""
        codes = self.starts, self._tokens, self._z, self._g
        return *codes, self.missed, self._ends, self._u, self._z.dtype.type(factor)


def bits(values: np.ndarray) -> np.ndarray:
    """Returns the memory of floats as integers of the same size."""
    return values.view(f"i{values.itemsize}")


def plain(tensor: torch.Tensor) -> np.ndarray:
    """Returns an array of the same memory; bfloat16 becomes int16, as the kernels take it."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _aligned(size: int, dtype: Any) -> np.ndarray:
    """Returns an array [size] with arbitrary content that starts at a line of the cache; numpy's own do not."""
    return torch.empty(size * np.dtype(dtype).itemsize, dtype=torch.uint8).numpy().view(dtype)
