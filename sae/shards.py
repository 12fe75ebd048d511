"""The files of one shard of activations: images with all their tokens, and tokens drawn from images to train on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from sae.files import write_header
from sae.images import TRAIN


@dataclass(frozen=True)
class Drawn:
    """A limit on the tokens of one shard: the images stored with all tokens, and the tokens drawn from train images.

    Attributes:
        whole: ids of the images with all tokens.
        out: the .npy file of the drawn tokens, [images, m, width]; a .json file goes beside it.
        ids: of the images in it, int64 [images], in the order of the shard.
        places: of each one's tokens, int64 [images, m], ascending.
    """

    whole: np.ndarray
    out: Path
    ids: np.ndarray
    places: np.ndarray


def draw(
    images: pd.DataFrame, whole: np.ndarray, selected: slice, roles: Sequence[str], many: int, seed: int, out: Path
) -> Drawn:
    """Draws tokens of the train images of one shard, at random, by the images' content.

    Args:
        images: the shard's rows of the list of images.
        whole, out: see `Drawn`.
        selected: the tokens to draw from, of `roles`.
        many: tokens of an image, at most.
    """
    train = images[images["split"] == TRAIN]
    tokens = np.arange(len(roles))[selected]
    rngs = (np.random.default_rng([seed, int(digest[:16], 16)]) for digest in train["sha256"])
    places = np.empty((len(train), min(many, len(tokens))), np.int64)
    for row, rng in enumerate(rngs):
        places[row] = np.sort(rng.permutation(tokens)[:many])
    return Drawn(whole, out, train["id"].to_numpy(), places)


class Part:
    """One file of a shard: some of its images, with all tokens or with drawn ones."""

    def __init__(self, path: Path, ids: np.ndarray, chosen: np.ndarray, places: np.ndarray | None = None):
        self.path, self.chosen, self.places = path, chosen, places
        self._row = np.cumsum(chosen) - 1  # of an image, in this file
        self.shape: list[int] = []
        self.checksum = hashlib.sha256()

    def begin(self, file: BinaryIO, kind: str, tokens: int, width: int) -> None:
        """Writes the header."""
        self.shape = [int(self.chosen.sum()), tokens if self.places is None else self.places.shape[1], width]
        self._file = file
        head = write_header(file, kind, tuple(self.shape))
        self.checksum = hashlib.sha256(head)

    def write(self, first: int, block: np.ndarray) -> np.ndarray:
        """Appends what belongs here of the images from `first` on, [b, tokens, width], and returns it."""
        here = np.flatnonzero(self.chosen[first : first + len(block)])
        if self.places is not None:
            block = block[here[:, None], self.places[self._row[first + here]]]
        elif len(here) < len(block):
            block = block[here]
        self._file.write(block.data)
        return block
