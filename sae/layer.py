"""One layer's store of activations, with the facts about its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae import images
from sae.geometry import Geometry
from sae.store import Activations


@dataclass(frozen=True)
class Layer:
    """One layer's store of activations and the facts about its images.

    Attributes:
        shards: all activation shards of the layer.
        manifest: of all images.
        reference: reference.json, the facts about the untouched ViT.
        statistics: statistics.json.
    """

    shards: Sequence[str | Path]
    manifest: pd.DataFrame
    reference: Mapping[str, Any]
    statistics: Mapping[str, Any]

    @cached_property
    def geometry(self) -> Geometry:
        """The geometry of the ViT."""
        return Geometry(**self.reference["geometry"])

    @property
    def selected(self) -> slice:
        """The tokens of an image that the dictionaries of this run read."""
        return self.geometry.select(self.statistics["tokens"])

    @cached_property
    def sample(self) -> np.ndarray:
        """The held-out images that went through the ViT: their ids, int64 [m], ascending."""
        return np.array(self.reference["ids"], np.int64)

    @cached_property
    def held_out(self) -> np.ndarray:
        """The ids of the ranked held-out images, int64 [images], ascending."""
        return self.ranked.loc[self.ranked["split"] == images.HELD_OUT, "id"].to_numpy()

    @cached_property
    def train(self) -> np.ndarray:
        """The ids of the ranked train images, int64 [images], ascending."""
        return self.ranked.loc[self.ranked["split"] == images.TRAIN, "id"].to_numpy()

    @cached_property
    def ranked(self) -> pd.DataFrame:
        """The manifest's rows of the ranked images, by id; see `images.ranked`."""
        return images.ranked(self.manifest, self.sample)

    @property
    def centre(self) -> tuple[np.ndarray, float]:
        """The train set's mean vector [d] and scale."""
        return np.array(self.statistics["mean"]), self.statistics["scale"]

    def tokens(self, which: str, ids: Sequence[int] | np.ndarray) -> Activations:
        """Returns these tokens of these images. The shards were checked when the statistics were made."""
        return Activations.open(self.shards, which, ids, verify=False)
