"""What the workflow needs to know of a ViT's shape; free of torch and timm, whose imports take seconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sae.errors import InputError


@dataclass(frozen=True)
class Geometry:
    """What the workflow needs to know of a model, read from it: nothing of this is ever typed by the user."""

    blocks: int
    width: int  # of the residual stream
    prefix: tuple[str, ...]  # roles of the tokens in front of the patches: class, distillation, register
    grid: tuple[int, int]  # rows and columns of patches
    side: tuple[int, int]  # height and width of the input, pixels
    outputs: int  # of the classification head; 0: the model has none

    @property
    def roles(self) -> list[str]:
        """The role of every token in order."""
        return [*self.prefix, *["patch"] * (self.grid[0] * self.grid[1])]

    def select(self, tokens: str) -> slice:
        """Returns which tokens `patches`, `class` or `all` are.

        Raises:
            InputError: `class` is asked of a model that has no class token.
        """
        if tokens == "class" and "class" not in self.prefix:
            raise InputError("tokens: class: this model has no class token; use patches or all")
        return {
            "patches": slice(len(self.prefix), None),
            "class": slice(0, 1),
            "all": slice(None),
        }[tokens]

    def position(self, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the patch rows and columns of token indices (of all tokens); -1 for prefix tokens."""
        patch = token - len(self.prefix)
        row, column = np.divmod(patch, self.grid[1])
        return np.where(patch < 0, -1, row), np.where(patch < 0, -1, column)
