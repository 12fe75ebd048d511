"""Checkpoints, from which an interrupted training continues."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from sae.errors import InputError
from sae.files import read_arrays, write_arrays
from sae.training.step import Step

_SHARE = 0.01  # of the time, at most, goes into checkpoints


class Checkpoint:
    """One file with all the state that a run needs to continue; each write replaces the whole file.

    Args:
        path: None: no checkpoints.
        identity: The arguments of the run; a file of another run is refused.
        every: Smallest number of seconds between writes; 0: write after every step.
    """

    def __init__(self, path: str | Path | None, identity: dict[str, Any], every: float):
        self._path = None if path is None else Path(path)
        self._identity, self._every = identity, every
        self._next = time.monotonic() + every
        self.step = 0  # of the file

    def load(self) -> tuple[dict[str, torch.Tensor], list[Any]] | None:
        """Returns the saved tensors and progress; None if there is no file.

        Raises:
            InputError: the file is damaged or belongs to another run.
        """
        if self._path is None or not self._path.exists():
            return None
        again = "delete it to start this run again from the beginning"
        try:
            arrays, facts = read_arrays(self._path)
            theirs, progress, count = dict(facts["identity"]), facts["progress"], int(arrays["count"])
        except Exception as error:  # of many kinds: each means that the file is damaged
            raise InputError(f"{self._path}: not a checkpoint that can be read; {again}") from error
        for name, value in self._identity.items():
            if theirs.get(name) != value:
                raise InputError(
                    f"{self._path}: this checkpoint was made with {name} {theirs.get(name)}, now it is {value}; {again}"
                )
        self.step = count
        return {name: torch.from_numpy(value) for name, value in arrays.items()}, progress

    def due(self) -> bool:
        """Returns whether it is time to write."""
        return self._path is not None and time.monotonic() >= self._next

    def write(self, step: Step, progress: tuple[Any, ...]) -> None:
        """Writes the state of the step, and the progress, which must be JSON."""
        if self._path is None:
            return
        began = time.monotonic()
        arrays = {name: value.numpy() for name, value in step.state().items()}
        write_arrays(self._path, arrays, {"identity": self._identity, "progress": progress})
        self.step = step.count
        took = time.monotonic() - began
        self._next = time.monotonic() + (max(self._every, took / _SHARE) if self._every else 0)

    def remove(self) -> None:
        """Deletes the file, if there is one."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
