"""The activations of one layer on disk: shards with checksums, their statistics, and reading them in shuffled order.

A shard is an .npy file, float16 [images, tokens, width] with *all* tokens of its images, and a .json file beside it
with the image ids in the same order, the SHA-256 and the provenance. A shard is float32 if an activation in it exceeds
float16's range. So every row can be traced to an image and a token position, and another choice of tokens needs no new
extraction. Rows are read when they are needed: memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sae.errors import InputError
from sae.files import Rows, check, read_json
from sae.geometry import select

if TYPE_CHECKING:
    import torch

_BUFFER_BYTES = 2**28  # how much of an epoch is shuffled together
LARGEST = 1e15  # an activation above it would overflow when squares are summed in float32
OUTLIER = 4  # a token is an outlier when its norm is above this many times the patches' median norm


class Activations:
    """The tokens of a set of images at one layer.

    Attributes:
        ids: int64 [images], the images' ids.
        tokens: how many tokens of an image are selected.
        width: d.
        dtype: the number format that holds the activations of all shards.
        dense: all tokens in order, [n, d], if they are in memory already; else None.
        on_device: the same as a tensor in the memory of a CUDA device, if they lie there; else None.
    """

    def __init__(self, arrays: Sequence[np.ndarray | Rows], ids: np.ndarray, rows: np.ndarray, chosen: slice):
        self._arrays, self._chosen = arrays, chosen
        self._rows = rows  # [images, 2]: the array, and the image's place in it
        self.ids = ids
        self.dense: np.ndarray | None = None
        self.on_device: torch.Tensor | None = None
        self.width = arrays[0].shape[2]
        self.dtype = np.result_type(*(array.dtype for array in arrays))
        self.tokens = len(range(*chosen.indices(arrays[0].shape[1])))

    @classmethod
    def open(
        cls,
        shards: Sequence[str | Path],
        tokens: str = "patches",
        ids: Sequence[int] | np.ndarray | None = None,
        verify: bool = True,
    ) -> Activations:
        """Opens the shards of one layer.

        Args:
            shards: the .npy files.
            tokens: `patches`, `class` or `all`.
            ids: the images to open, such as a split; None opens all.
            verify: compare every shard with its checksum first.

        Raises:
            InputError: a shard is damaged, or there is no image left.
        """
        arrays: list[Rows] = []
        listed, places = [], []
        chosen = slice(None)
        for number, path in enumerate(map(Path, sorted(map(str, shards)))):
            try:
                facts, array = read_json(path.with_suffix(".json")), Rows(path)
                here, roles, digest = np.array(facts["ids"], np.int64), list(facts["roles"]), facts["sha256"]
                if array.dtype.kind != "f" or len(array.shape) != 3 or here.shape != array.shape[:1]:
                    raise ValueError(f"{array.dtype} of shape {array.shape} for {len(here)} images")
                if arrays and array.shape[1:] != arrays[0].shape[1:]:
                    raise ValueError(f"shape {array.shape[1:]} per image, other shards have {arrays[0].shape[1:]}")
            except InputError:
                raise
            except Exception as error:  # of many kinds: each means that one of the two files is damaged
                raise InputError(f"{path}: cannot be read as a shard: {error}; delete it and run again") from error
            if verify:
                check(path, digest)
            arrays.append(array)
            chosen = select(roles, tokens)
            listed.append(here)
            places.append(np.stack([np.full_like(here, number), np.arange(len(here))], 1))
        found, rows = np.concatenate(listed), np.concatenate(places)
        if ids is not None:
            keep = np.isin(found, np.asarray(ids))
            found, rows = found[keep], rows[keep]
        if not len(found):
            raise InputError(f"{shards[0]}: none of the requested images is in these shards; extract this layer again")
        order = np.argsort(found)
        return cls(arrays, found[order], rows[order], chosen)

    @classmethod
    def of(cls, x: np.ndarray | torch.Tensor) -> Activations:
        """Wraps an array [n, d] or [..., d] of any real numbers: each row counts as an image of one token.

        Raises:
            InputError: the array has one dimension, is empty, or holds no real numbers.
        """
        on_device = None
        if hasattr(x, "detach"):
            x = x.detach()
            x = x.float() if str(x.dtype) == "torch.bfloat16" else x  # numpy has no such type
            on_device = x.contiguous() if x.is_cuda and x.is_floating_point() else None
            # One number stands for all, so that nothing is copied to the host.
            x = x.cpu() if on_device is None else x.new_zeros((), device="cpu").expand(x.shape)
        array = np.asarray(x)
        if array.ndim < 2 or not array.size:
            raise InputError(f"activations of shape {array.shape}: need numbers in [n, d] with n > 0; reshape them")
        array = array.reshape(-1, array.shape[-1])
        on_device = None if on_device is None else on_device.reshape(array.shape)
        if array.dtype.kind not in "fiub":
            raise InputError(f"activations of type {array.dtype}: need real numbers in [n, d]; convert them to float32")
        if array.dtype not in (np.float16, np.float32, np.float64):
            array = array.astype(np.float32)
        n = np.arange(len(array))
        made = cls([array[:, None, :]], n, np.stack([np.zeros_like(n), n], 1), slice(None))
        made.dense, made.on_device = (array, None) if on_device is None else (None, on_device)
        return made

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: np.ndarray) -> np.ndarray:
        """Returns the selected tokens of the images at these places, [len(index), tokens, d], as stored."""
        if self.dense is not None:
            return self.dense[index][:, None]
        if self.on_device is not None:
            return self.on_device[index][:, None].cpu().numpy()
        out = np.empty((len(index), self.tokens, self.width), self.dtype)
        rows = self._rows[index]
        for number in np.unique(rows[:, 0]):
            here = np.flatnonzero(rows[:, 0] == number)
            here = here[np.argsort(rows[here, 1])]  # in the order of the disk
            array = self._arrays[number]
            chosen = rows[here, 1], self._chosen
            out[here] = array.read(*chosen) if isinstance(array, Rows) else array[chosen]
        return out

    def blocks(self, images: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (ids, tokens [images, tokens, d]) in the order of the ids, `images` at a time."""
        for first in range(0, len(self), images):
            last = min(first + images, len(self))
            block = self.read(np.arange(first, last)) if self.dense is None else self.dense[first:last, None]
            yield self.ids[first:last], block

    def steps(self, batch: int, whole_images: bool = False) -> int:
        """Returns how many batches an epoch has; see `shuffled`."""
        return -(-(len(self) if whole_images else len(self) * self.tokens) // batch)

    def places(self, index: np.ndarray) -> np.ndarray:
        """Returns the row numbers of these images' tokens when all are read in order, int64 [len(index), tokens]."""
        return index[:, None] * self.tokens + np.arange(self.tokens)

    def shuffled(
        self,
        batch: int,
        rng: np.random.Generator,
        whole_images: bool = False,
        read: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields every token once in random order, [batch, d]; the last batch may be shorter.

        Images are permuted over the whole epoch, tokens within a buffer of 256 MB: a set that fits into it is
        shuffled exactly.

        Args:
            batch: tokens in a batch, or images where `whole_images` keeps the tokens of an image together.
            read: the method that gives the tokens of images: `read` (None), or `places` for their row numbers.
        """

        def rows(index: np.ndarray) -> np.ndarray:
            part = (read or self.read)(index)
            return part.reshape(-1, *part.shape[2:])

        order = rng.permutation(len(self))
        if whole_images or self.tokens == 1:
            for first in range(0, len(order), batch):
                yield rows(order[first : first + batch])
            return
        per_buffer = max(1, _BUFFER_BYTES // (self.dtype.itemsize * self.tokens * self.width))
        rest = rows(order[:0])
        for first in range(0, len(order), per_buffer):
            fresh = rows(order[first : first + per_buffer])
            mixed = rng.permutation(len(fresh))
            start = 0
            while start + batch - len(rest) <= len(fresh):
                end = start + batch - len(rest)
                yield np.concatenate([rest, fresh[mixed[start:end]]])
                start, rest = end, rest[:0]
            rest = np.concatenate([rest, fresh[mixed[start:]]])
        if len(rest):
            yield rest


def moments(x: Activations) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean vector and the variance of each dimension over all selected tokens, float64 [d] each.

    Raises:
        InputError: a number is not finite, or above LARGEST.
    """
    import torch  # here: jobs that only read codes do without, and it takes seconds

    total, square, count = np.zeros(x.width), np.zeros(x.width), 0
    shift: torch.Tensor | None = None  # summing around a first guess: no cancellation where the mean is large
    if x.on_device is None:  # blocks for a core's cache
        given = (torch.from_numpy(np.array(block)) for _ids, block in x.blocks(max(1, 2**18 // (x.tokens * x.width))))
    else:  # enough work for a GPU
        given = iter(x.on_device[:, None].split(max(1, 2**26 // x.width)))
    for block in given:
        rows = block.reshape(-1, x.width)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        shift = rows.mean(0) if shift is None else shift
        rows = rows - shift
        here = rows.square().sum(0).double()
        if not here.isfinite().all() or (block.dtype != torch.float16 and block.abs().max() > LARGEST):
            largest = block.abs().amax((1, 2)).double().cpu().numpy()
            bad = np.flatnonzero(~(largest <= LARGEST))[0]
            place = f"{'image' if x.dense is None and x.on_device is None else 'row'} {x.ids[count // x.tokens + bad]}"
            raise InputError(f"{place}: an activation is {largest[bad]:.3g}; need finite numbers up to {LARGEST:g}")
        total += rows.sum(0).double().cpu().numpy()
        square += here.cpu().numpy()
        count += len(rows)
    assert shift is not None  # there is no empty store
    offset = total / count
    return shift.double().cpu().numpy() + offset, np.maximum(square / count - offset**2, 0)


def scale(mean: np.ndarray, variance: np.ndarray) -> float:
    """Returns the factor s after which E‖(x - mean)·s‖² = d, from the `moments` of x.

    Raises:
        InputError: all tokens are the same, but for the rounding of sums in float32.
    """
    if variance.sum() <= 1e-12 * np.square(mean).sum():
        raise InputError("every token has the same activation; choose another layer or other images")
    return float(np.sqrt(len(variance) / variance.sum()))
