"""The shape of a Vision Transformer; free of torch and timm, whose imports take seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sae.errors import InputError


@dataclass(frozen=True)
class Geometry:
    """The shape of a model, read from the model, so that users need not enter it.

    Attributes:
        blocks: number of blocks, and so of layers.
        width: of the residual stream.
        prefix: the kinds of the tokens in front of the patches: class, distillation, register.
        patches: rows and columns of patches.
        side: height and width of the input, pixels.
        outputs: of the classification head; 0: the model has none.
    """

    blocks: int
    width: int
    prefix: tuple[str, ...]
    patches: tuple[int, int]
    side: tuple[int, int]
    outputs: int

    @property
    def count(self) -> int:
        """The number of patches."""
        return self.patches[0] * self.patches[1]

    @property
    def roles(self) -> list[str]:
        """The kind of every token in order: those of `prefix`, then `patch`."""
        return [*self.prefix, *["patch"] * self.count]

    def select(self, tokens: str) -> slice:
        """Returns the positions of the tokens `patches`, `class` or `all`; see the function `select`."""
        return select(self.prefix, tokens)

    def position(self, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the patch rows and columns of token indices [n] (of all tokens), [n] each; -1 for prefix tokens."""
        patch = token - len(self.prefix)
        row, column = np.divmod(patch, self.patches[1])
        return np.where(patch < 0, -1, row), np.where(patch < 0, -1, column)


def select(prefix: Sequence[str], tokens: str) -> slice:
    """Returns the positions of the tokens `patches`, `class` or `all` among all tokens of an image.

    Args:
        prefix: the kinds of the tokens in front of the patches.

    Raises:
        InputError: tokens is none of these, or `class` and the model has no class token.
    """
    places = {"patches": slice(len(prefix), None), "class": slice(0, 1), "all": slice(None)}
    if tokens not in places:
        raise InputError(f"tokens {tokens}: must be one of {', '.join(places)}")
    if tokens == "class" and "class" not in prefix:
        raise InputError("tokens: class: this model has no class token; use patches or all")
    return places[tokens]


def check_layer(layer: int, blocks: int) -> None:
    """Raises InputError unless 0 <= layer < blocks."""
    if not 0 <= layer < blocks:
        raise InputError(f"layer {layer}: this model has blocks 0..{blocks - 1}; choose one of these")
