"""The batches of a training run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch

from sae.files import ahead
from sae.store import Activations
from sae.training.config import TrainConfig
from sae.training.step import Rows

_SHARE = 0.6  # of a GPU's free memory that activations may take


class Feed:
    """The batches of all epochs, on the device that needs them.

    On CUDA the activations stay in device memory if they fit; on a CPU they stay where they are if they lie in memory.
    Then only row numbers are drawn. Otherwise a thread reads ahead. The order is the same everywhere.
    """

    def __init__(self, x: Activations, config: TrainConfig, seed: int, device: torch.device):
        self._x, self._config, self._seed, self._device = x, config, seed, device
        self.steps_per_epoch = x.steps(config.batch, config.whole_images)
        self._resident: torch.Tensor | None = None
        if device.type == "cpu" and x.dense is not None:
            self._resident = _tensor(x.dense)
        if device.type == "cuda" and x.on_device is not None:
            self._resident = x.on_device.to(device)
        elif device.type == "cuda":
            size = x.read(np.arange(1)).nbytes
            if size * len(x) < _SHARE * torch.cuda.mem_get_info(device)[0]:
                blocks = (torch.from_numpy(block).to(device) for _ids, block in x.blocks(max(1, 2**26 // size)))
                self._resident = torch.cat([block.reshape(-1, x.width) for block in blocks])

    def batches(self, done: int) -> Iterator[tuple[int, torch.Tensor | Rows]]:
        """Yields (epoch, rows [n, d] as stored), without the first `done` batches."""
        first, skip = divmod(done, self.steps_per_epoch)
        for epoch in range(first, self._config.epochs):
            for part in self._epoch(np.random.default_rng([self._seed, 1, epoch]), skip if epoch == first else 0):
                yield epoch, part if self._resident is None else Rows(self._resident, part)

    def _epoch(self, rng: np.random.Generator, skip: int) -> Iterator[torch.Tensor]:
        """Yields the rows of each batch, or their numbers [n] if the activations are resident."""
        read = self._x.read if self._resident is None else self._x.places
        blocks = islice(self._x.shuffled(self._config.batch, rng, self._config.whole_images, read), skip, None)
        parts = (torch.from_numpy(np.ascontiguousarray(block)) for block in blocks)
        if self._device.type == "cuda" and self._resident is not None:
            return (part for many in ahead(_joined(parts)) for part in many[0].to(self._device).split(many[1]))
        if self._device.type == "cuda":
            return (part.to(self._device, non_blocking=True) for part in ahead(part.pin_memory() for part in parts))
        return ahead(parts) if self._resident is None else parts


def _joined(parts: Iterator[torch.Tensor]) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Yields many row numbers at once, pinned, and how many each part has: a GPU would wait for small copies."""
    while many := list(islice(parts, 64)):
        yield torch.cat(many).pin_memory(), [len(part) for part in many]


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Returns a tensor of the array's memory, to be read only; a copy if torch cannot use the array's layout."""
    with warnings.catch_warnings(action="ignore"):  # of an array that must not be written
        return torch.from_numpy(np.ascontiguousarray(array))
