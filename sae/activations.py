"""The activations of one layer on disk: shards with checksums, their statistics, and reading them in shuffled order.

A shard is an .npy file, float16 [images, tokens, width] with *all* tokens of its images, and a .json file beside it
with the image ids in the same order, the SHA-256 and what made it. So every row can be traced to an image and a token
position, and another choice of tokens needs no new extraction. Reading is by memory map: memory does not grow with
the number of images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae.errors import InputError
from sae.files import read_json, sha256
from sae.geometry import Geometry

_BUFFER_BYTES = 2**28  # how much of an epoch is shuffled together, as float16
# Norms are counted in fine bins, 0.6 % wide, so that quantiles need no list of all tokens; figures get coarse ones.
_NORM_EDGES = 10 ** np.linspace(-1, 4, 2001)
_NORM_BINS_PER_BAR = 40
OUTLIER = 4  # a token is an outlier when its norm is above this many times the patches' median norm


class Activations:
    """The tokens of a set of images at one layer.

    Attributes:
        ids: int64 [images], the images' ids.
        tokens: how many tokens of an image are selected.
        width: d.
        dense: all tokens in order, [n, d], where they lie in memory already; else None.
    """

    def __init__(self, arrays: list[np.ndarray], ids: np.ndarray, rows: np.ndarray, chosen: slice):
        self._arrays, self._chosen = arrays, chosen
        self._rows = rows  # [images, 2]: which array, which of its images
        self.ids = ids
        self.dense: np.ndarray | None = None
        self.width = arrays[0].shape[2]
        self.tokens = len(range(*chosen.indices(arrays[0].shape[1])))

    @classmethod
    def open(
        cls,
        shards: Sequence[str | Path],
        tokens: str = "patches",
        ids: Sequence[int] | None = None,
        verify: bool = True,
    ) -> Activations:
        """Opens the shards of one layer.

        Args:
            shards: the .npy files.
            tokens: `patches`, `class` or `all`.
            ids: only these images (a split); None: all.
            verify: compare every shard with its checksum first.

        Raises:
            InputError: a shard is damaged, or there is no image left.
        """
        arrays, found, rows, chosen = [], [], [], None
        for number, path in enumerate(map(Path, sorted(map(str, shards)))):
            facts = read_json(path.with_suffix(".json"))
            if verify and sha256(path) != facts["sha256"]:
                raise InputError(f"{path}: its content does not match its checksum; delete it and run again")
            arrays.append(np.load(path, mmap_mode="r"))
            prefix, grid = tuple(facts["roles"]), tuple(facts["grid"])
            chosen = Geometry(0, 0, prefix, grid, (0, 0), 0).select(tokens)
            found += facts["ids"]
            rows += [(number, i) for i in range(len(facts["ids"]))]
        found, rows = np.array(found, np.int64), np.array(rows, np.int64)
        if ids is not None:
            keep = np.isin(found, np.asarray(ids))
            found, rows = found[keep], rows[keep]
        if not len(found):
            raise InputError(f"{shards[0]}: none of the images asked for is in this layer's shards")
        order = np.argsort(found)
        return cls(arrays, found[order], rows[order], chosen)

    @classmethod
    def of(cls, x: np.ndarray | torch.Tensor) -> Activations:
        """Wraps an array [n, d]: each row counts as an image of one token."""
        array = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
        if array.ndim != 2 or not len(array):
            raise InputError(f"activations of shape {array.shape}: need numbers in [n, d] with n > 0")
        n = np.arange(len(array))
        x = cls([array[:, None, :]], n, np.stack([np.zeros_like(n), n], 1), slice(None))
        x.dense = array
        return x

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: np.ndarray) -> np.ndarray:
        """Returns the selected tokens of the images at these places, [len(index), tokens, d], as stored."""
        if self.dense is not None:
            return self.dense[index][:, None]
        out = np.empty((len(index), self.tokens, self.width), self._arrays[0].dtype)
        rows = self._rows[index]
        for number in np.unique(rows[:, 0]):
            here = np.flatnonzero(rows[:, 0] == number)
            here = here[np.argsort(rows[here, 1])]  # in the order of the disk
            out[here] = self._arrays[number][rows[here, 1], self._chosen]
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
        """Returns where the tokens of these images stand when all are read in order, int64 [len(index), tokens]."""
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
            read: what gives an image's tokens: `read` (None) or, for the same order as row numbers, `places`.
        """

        def rows(index: np.ndarray) -> np.ndarray:
            part = (read or self.read)(index)
            return part.reshape(-1, *part.shape[2:])

        order = rng.permutation(len(self))
        if whole_images or self.tokens == 1:
            for first in range(0, len(order), batch):
                yield rows(order[first : first + batch])
            return
        per_buffer = max(1, _BUFFER_BYTES // (2 * self.tokens * self.width))
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


def tensor(array: np.ndarray) -> torch.Tensor:
    """Returns a tensor of the array's memory, to be read only; a copy where torch cannot have it as it lies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an array that must not be written
        return torch.from_numpy(np.ascontiguousarray(array))


def moments(x: Activations) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean vector and the variance of each dimension over all selected tokens, float64 [d] each.

    Raises:
        InputError: a number is not finite.
    """
    total, square, count = np.zeros(x.width), np.zeros(x.width), 0
    shift = None  # summing around a first guess: no cancellation where the mean is large
    for ids, block in x.blocks(max(1, 2**18 // (x.tokens * x.width))):
        rows = tensor(block.reshape(-1, x.width))
        rows = rows if rows.dtype == torch.float64 else rows.float()
        shift = rows.mean(0) if shift is None else shift
        rows = rows - shift
        here = rows.square().sum(0).double()
        if not here.isfinite().all():
            bad = ids[np.flatnonzero(~np.isfinite(block).all((1, 2)))[0]]
            raise InputError(f"image {bad}: an activation is not finite; extract this layer with dtype float32")
        total += rows.sum(0).double().numpy()
        square += here.numpy()
        count += len(rows)
    shift = shift.double().numpy()
    offset = total / count
    return shift + offset, np.maximum(square / count - offset**2, 0)


def statistics(shards: Sequence[str | Path], tokens: str, ids: Sequence[int]) -> dict[str, Any]:
    """Returns what a person should know of a layer before training on it, from the images `ids` (the train split).

    mean [d] and scale: (x - mean)·scale has E‖x‖² = d. gamma = ‖mean‖/‖std‖ predicts dead latents in SAEs that do not
    centre (arXiv 2605.31518). norms: mean, median and 99th percentile of ‖x‖ by token role. largest_dimensions: the
    dimensions with the most variance and their share of it. outlier_patches: share of patch tokens whose norm is
    above 4 times the median (Darcet et al. 2024, arXiv 2309.16588). warnings: sentences.

    Raises:
        InputError: a shard is damaged, or all activations are the same.
    """
    selected = Activations.open(shards, tokens, ids)
    mean, variance = moments(selected)
    if variance.sum() == 0:
        raise InputError(f"{shards[0]}: every token has the same activation; there is nothing to learn")
    gamma = float(np.linalg.norm(mean) / np.sqrt(variance.sum()))
    order = np.argsort(-variance)[:5]
    share = variance[order] / variance.sum()

    everything = Activations.open(shards, "all", ids, verify=False)
    roles = np.array(read_json(Path(shards[0]).with_suffix(".json"))["roles"])
    roles = np.append(roles, ["patch"] * (everything.tokens - len(roles)))
    counts = {role: np.zeros(len(_NORM_EDGES) - 1, np.int64) for role in dict.fromkeys(roles)}
    totals = dict.fromkeys(counts, 0.0)
    for _ids, block in everything.blocks(64):
        norm = np.linalg.norm(block.astype(np.float32), axis=2)
        for role in counts:
            values = norm[:, roles == role].clip(_NORM_EDGES[0], _NORM_EDGES[-1] * 0.999)
            counts[role] += np.histogram(values, _NORM_EDGES)[0]
            totals[role] += float(values.sum())
    by_role = {
        role: {
            "mean": totals[role] / int(count.sum()),
            "median": _quantile(count, 0.5),
            "p99": _quantile(count, 0.99),
            "histogram": count.reshape(-1, _NORM_BINS_PER_BAR).sum(1).tolist(),
        }
        for role, count in counts.items()
    }
    above = _NORM_EDGES[:-1] > OUTLIER * by_role["patch"]["median"]
    outliers = float(counts["patch"][above].sum() / counts["patch"].sum())
    facts = {
        "tokens": tokens,
        "images": len(selected),
        "rows": len(selected) * selected.tokens,
        "mean": mean.tolist(),
        "scale": float(np.sqrt(selected.width / variance.sum())),
        "gamma": gamma,
        "norms": by_role,
        "variance": variance.tolist(),
        "largest_dimensions": [{"dimension": int(i), "share": float(s)} for i, s in zip(order, share, strict=True)],
        "effective_dimensions": float(variance.sum() ** 2 / (variance**2).sum()),
        "outlier_patches": outliers,
    }
    return facts | {"warnings": _warnings(facts)}


def _quantile(counts: np.ndarray, share: float) -> float:
    """Returns the norm below which this share of the counted tokens lies, to the width of a bin."""
    place = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    return float(np.sqrt(_NORM_EDGES[place] * _NORM_EDGES[place + 1]))


def _warnings(facts: dict[str, Any]) -> list[str]:
    warnings = []
    if facts["gamma"] > 1:
        warnings.append(
            f"The mean vector is {facts['gamma']:.1f} times as long as the spread around it (γ): without centring "
            "many latents would die. Keep sae.input: standardised."
        )
    top = facts["largest_dimensions"][0]
    if top["share"] > 0.2:
        warnings.append(
            f"Dimension {top['dimension']} alone carries {top['share']:.0%} of the variance: FVU mostly measures "
            "this one dimension."
        )
    if facts["outlier_patches"] > 0.005:
        warnings.append(
            f"{facts['outlier_patches']:.1%} of the patch tokens have a norm above {OUTLIER} times the median: "
            "artefact tokens, on which some latents will specialise."
        )
    return warnings
