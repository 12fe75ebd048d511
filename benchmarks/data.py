"""The data of the comparison: a planted dictionary, or activations that the workflow wrote.

Every tool reads the same two files: train.npy, float32 [n, d] in random order, and held_out.npy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sae
from sae.files import read_json

_BLOCK = 100_000  # rows drawn at a time


@dataclass(frozen=True)
class Planted:
    """A set of known directions; each token is a sum of a few of them."""

    width: int = 192
    features: int = 4096
    active: int = 32  # features in a token, on average
    flatness: int = 30  # feature r is in a share of the tokens that goes as 1 / (r + flatness): here 22 % to 0.2 %
    offset: float = 1.0  # length of the mean that is added, in units of the spread around it
    noise: float = 0.1  # standard deviation of the noise, in units of a dimension's
    seed: int = 0


@dataclass(frozen=True)
class Data:
    """Files of rows."""

    folder: Path
    facts: dict[str, Any]  # for the reader of the results

    @property
    def train(self) -> Path:
        return self.folder / "train.npy"

    @property
    def held_out(self) -> Path:
        return self.folder / "held_out.npy"

    @property
    def planted(self) -> np.ndarray | None:
        """The true directions [features, d], of norm 1, where they are known."""
        file = self.folder / "planted.npy"
        return np.load(file) if file.exists() else None


def synthetic(parent: Path, rows: int, held_out: int, planted: Planted) -> Data:
    """Returns tokens made of a planted dictionary, drawn once and kept under `parent`.

    A token is a sum of random directions of norm 1, with exponential amplitudes, plus a mean and noise.
    """
    facts = {"kind": "synthetic", "rows": rows, "held_out": held_out, **asdict(planted)}
    data = Data(folder_of(parent, facts), facts)
    if data.train.exists():
        return data
    rng = np.random.default_rng(planted.seed)
    directions = rng.standard_normal((planted.features, planted.width), np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    share = 1 / (np.arange(planted.features) + planted.flatness)
    share *= planted.active / share.sum()
    sample = _draw(directions, share, 10_000, rng)
    spread = float(np.sqrt(sample.var(0).sum()))
    mean = rng.standard_normal(planted.width, np.float32)
    mean *= planted.offset * spread / np.linalg.norm(mean)
    mean -= sample.mean(0)  # amplitudes are positive: without this the features' own mean comes on top
    noise = planted.noise * spread / planted.width**0.5
    np.save(data.folder / "planted.npy", directions)
    for file, count in (data.held_out, held_out), (data.train, rows):
        part = file.with_suffix(".part.npy")
        out = np.lib.format.open_memmap(part, "w+", np.float32, (count, planted.width))
        for first in range(0, count, _BLOCK):
            block = _draw(directions, share, min(_BLOCK, count - first), rng)
            block += mean + noise * rng.standard_normal(block.shape, np.float32)
            out[first : first + len(block)] = block
        out.flush()
        part.rename(file)
    return data


def stored(parent: Path, shards: Sequence[Path], rows: int, held_out: int) -> Data:
    """Returns the patches of a layer's shards; the last fifth of the images is held out.

    Args:
        rows, held_out: at most this many, drawn at random.
    """
    sums = [read_json(shard.with_suffix(".json"))["sha256"] for shard in shards]
    facts = {"kind": "stored", "shards": [str(shard) for shard in shards], "most": [rows, held_out]}
    data = Data(folder_of(parent, facts | {"shards": sums}), facts)
    activations = sae.Activations.open(shards, "patches")
    first_held = len(activations) - max(1, len(activations) // 5)
    rng = np.random.default_rng(0)
    held, rest = np.arange(first_held, len(activations)), np.arange(first_held)
    for file, images, most in (data.held_out, held, held_out), (data.train, rest, rows):
        if not file.exists():
            images = rng.permutation(images)[: -(-most // activations.tokens)]
            tokens = activations.read(np.sort(images)).reshape(-1, activations.width)
            part = file.with_suffix(".part.npy")
            np.save(part, tokens[rng.permutation(len(tokens))[:most]].astype(np.float32))
            part.rename(file)
    counts = {"rows": len(np.load(data.train, mmap_mode="r")), "held_out": len(np.load(data.held_out, mmap_mode="r"))}
    return Data(data.folder, facts | counts | {"width": activations.width})


def _draw(directions: np.ndarray, share: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Returns sums of directions [rows, d], direction i being in about share[i] of the rows."""
    counts = rng.binomial(rows, share)
    feature = np.repeat(np.arange(len(directions)), counts)
    row = rng.integers(0, rows, len(feature), np.int32)
    order = np.argsort(row, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))[:-1]])
    amplitudes = rng.standard_exponential(len(feature), np.float32)
    return torch.nn.functional.embedding_bag(
        torch.from_numpy(feature[order]),
        torch.from_numpy(directions),
        torch.from_numpy(starts),
        mode="sum",
        per_sample_weights=torch.from_numpy(amplitudes),
    ).numpy()


def folder_of(parent: Path, facts: dict[str, Any]) -> Path:
    """Returns a folder of its own for data of this description."""
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    folder = parent / f"{facts['kind']}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
