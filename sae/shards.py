"""The files of one shard of activations: images with all their tokens, and tokens drawn from images to train on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from sae.files import write_header
from sae.images import TRAIN


class Part:
    """One file of a shard: some of its images, with all tokens or with drawn ones.

    Args:
        path: the .npy file, [images, tokens, width]; a .json file goes beside it.
        ids: of all images of the shard, in the order of their pixels.
        chosen: bool, the images in this file; None: all.
        places: of each chosen image's tokens, int64 [images, m], ascending; None: all tokens.
    """

    def __init__(
        self,
        path: Path,
        ids: Sequence[int] | np.ndarray,
        chosen: np.ndarray | None = None,
        places: np.ndarray | None = None,
    ):
        ids = np.array([*ids], np.int64)
        self.path, self.places = path, places
        self._chosen = np.ones(len(ids), bool) if chosen is None else chosen
        self._ids = ids[self._chosen].tolist()
        self._row = np.cumsum(self._chosen) - 1  # of an image, in this file
        self._shape: list[int] = []
        self.checksum = hashlib.sha256()

    def begin(self, file: BinaryIO, kind: str, tokens: int, width: int) -> None:
        """Writes the header."""
        self._shape = [len(self._ids), tokens if self.places is None else self.places.shape[1], width]
        self._file = file
        head = write_header(file, kind, tuple(self._shape))
        self.checksum = hashlib.sha256(head)

    def write(self, first: int, block: np.ndarray) -> np.ndarray:
        """Appends what belongs here of the images from `first` on, [b, tokens, width], and returns it."""
        here = np.flatnonzero(self._chosen[first : first + len(block)])
        if self.places is not None:
            block = block[here[:, None], self.places[self._row[first + here]]]
        elif len(here) < len(block):
            block = block[here]
        self._file.write(block.data)
        return block

    def facts(self) -> dict[str, Any]:
        """Returns the facts about the written file that its .json holds."""
        found = {"ids": self._ids, "shape": self._shape, "sha256": self.checksum.hexdigest()}
        return found if self.places is None else found | {"places": self.places.tolist()}


def limited(
    images: pd.DataFrame, whole: np.ndarray, tokens: np.ndarray, many: int, seed: int, out: Path, drawn: Path
) -> list[Part]:
    """Returns the files of a shard whose tokens are limited: images with all tokens, and drawn tokens of train images.

    Tokens are drawn at random, by the images' content.

    Args:
        images: the shard's rows of the list of images.
        whole: ids of the images with all tokens.
        tokens: the places of the tokens to draw from, ascending.
        many: tokens of an image, at most.
        out, drawn: the .npy files.
    """
    train = (images["split"] == TRAIN).to_numpy()
    places = np.empty((train.sum(), min(many, len(tokens))), np.int64)
    for row, digest in enumerate(images.loc[train, "sha256"]):
        places[row] = np.sort(np.random.default_rng([seed, int(digest[:16], 16)]).permutation(tokens)[:many])
    ids = images["id"].to_numpy()
    return [Part(out, ids, np.isin(ids, whole)), Part(drawn, ids, train, places)]
