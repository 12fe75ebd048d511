"""The part that all workers share: their settings, the order of the data, the clock, and their results.

A worker is one process that trains one SAE with one tool, in that tool's own environment:

    python workers/train_sparsify.py settings.json

It writes result.json, x_hat.npy (of the held-out rows, in the units of x), decoder.npy [latents, d] and active.npy (the
latents above 0 on each held-out row, 8 in a byte) into the folder that the settings name. The clock runs over the
tool's whole training, from its first look at the data (norms, means) to its last step, and over nothing else: not over
imports, reading the file, or a first short run that is thrown away.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

_SHARE = 0.05  # see `Job.cut`
_WARM_UP_STEPS = 4  # the fewest that dictionary_learning's schedule of warm-up, plateau and decay can have
_EVALUATE_ROWS = 4096  # at a time


@dataclass(frozen=True)
class Settings:
    """What the parent asks for."""

    out: str  # a folder
    train: str  # .npy float32 or float16 [n, d], rows in random order
    held_out: str  # .npy float32 [m, d]
    latents: int
    k: int
    batch: int
    tokens: int  # to train on, about; see `budget`
    lr: float | None  # None: the tool's own
    seed: int
    threads: int
    device: str  # cpu or cuda
    precision: str  # as sae.train takes it; the peers' are their variants
    variant: str | None  # one of the worker's; None: whichever is fastest here
    as_shipped: bool  # see `Job.cut`
    option: str | None  # a choice of the tool's own that changes what is learnt; see its worker
    failed_variants: dict[str, str] = field(default_factory=dict)  # filled in by the worker: which, and why


@dataclass(frozen=True)
class Job:
    """One training run."""

    settings: Settings
    x: torch.Tensor  # [rows, d] on the device; rows is a multiple of the batch size
    epochs: int  # passes over x
    variant: str
    as_shipped: bool

    @property
    def width(self) -> int:
        return self.x.shape[1]

    @property
    def tokens(self) -> int:
        return self.epochs * len(self.x)

    @property
    def steps(self) -> int:
        return self.tokens // self.settings.batch

    def cut(self, shipped: int, whole: int) -> int:
        """Returns a count of steps or tokens that a tool ships with, at most 5 % of the `whole` run's.

        Warm-ups of 1,000 steps and latents that count as dead after 10 million tokens were written for runs a thousand
        times longer: as they are, a short run would end before its warm-up does, and AuxK would never set in.
        """
        return shipped if self.as_shipped else min(shipped, max(1, round(_SHARE * whole)))

    def orders(self) -> Iterator[torch.Tensor]:
        """Yields row numbers [batch] for ever, each epoch in its own random order, the same for every tool."""
        rng = np.random.default_rng([self.settings.seed, 1])
        while True:
            order = torch.from_numpy(rng.permutation(len(self.x))).to(self.x.device)
            yield from order.split(self.settings.batch)

    def batches(self) -> Iterator[torch.Tensor]:
        """Yields fresh copies of rows, [batch, d], for ever."""
        for order in self.orders():
            yield self.x[order].float()


@dataclass(frozen=True)
class Trained:
    """A trained SAE, as the parent judges it."""

    reconstruct: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # x [n, d] -> x̂ [n, d], latents [n, F]
    decoder: torch.Tensor  # [F, d]
    recipe: str  # what was trained how, for the reader of the table


Train = Callable[[Job], Trained]


def budget(tokens: int, rows: int, batch: int) -> tuple[int, int]:
    """Returns (rows to use, epochs over them), whole batches, so that every tool sees the same rows equally often."""
    steps = max(_WARM_UP_STEPS, round(tokens / batch))
    epochs = -(-steps // (rows // batch))
    return round(steps / epochs) * batch, epochs


def serve(train: Train, package: str, variants: Sequence[str] = ("float32",)) -> None:
    """Does what the settings file named on the command line asks for, with the tool that `train` drives.

    Args:
        package: the tool's name on PyPI, or the project's.
        variants: the tool's documented ways to train faster, the plain one first. Where the settings name none, each
            is tried and the fastest that works is taken.
    """
    file = Path(sys.argv[1])
    settings = Settings(**json.loads(file.read_text()))
    torch.set_num_threads(settings.threads)
    array = np.load(settings.train)
    rows, epochs = budget(settings.tokens, len(array), settings.batch)
    x = torch.from_numpy(array).to(settings.device)
    variant = settings.variant or variants[0]
    if settings.variant is None and len(variants) > 1:
        variant, failed = _fastest(train, settings, x, variants)
        file.write_text(json.dumps(asdict(replace(settings, variant=variant, failed_variants=failed))))
        os.execv(sys.executable, [sys.executable, *sys.argv])  # anew: the memory of trials must not count
    before = _start_memory(settings.device)
    _timed(train, _warm_up(settings, x, variant))
    job = Job(settings, x[:rows], epochs, variant, settings.as_shipped)
    trained, seconds = _timed(train, job)
    peak = _peak_memory(settings.device)
    result = {
        "tokens": job.tokens,
        "seconds": seconds,
        "variant": variant,
        "failed_variants": settings.failed_variants,
        "recipe": trained.recipe,
        "memory_mb": (peak - before) / 2**20,
        "peak_mb": peak / 2**20,
        "version": version(package),
        "torch": torch.__version__,
        **_evaluate(trained, settings),
    }
    (Path(settings.out) / "result.json").write_text(json.dumps(result))


def bf16_is_fast(device: str) -> bool:
    """Tells whether the machine has bfloat16 in hardware; a CPU without it is ten times slower than in float32."""
    if device == "cpu":
        return "bf16" in Path("/proc/cpuinfo").read_text()
    return torch.cuda.is_bf16_supported(including_emulation=False)


def asked_for() -> dict[str, Any]:
    """Returns the settings, for decisions before a tool is imported."""
    return json.loads(Path(sys.argv[1]).read_text())


def _warm_up(settings: Settings, x: torch.Tensor, variant: str) -> Job:
    return Job(settings, x[: _WARM_UP_STEPS * settings.batch], 1, variant, as_shipped=False)


def _fastest(train: Train, settings: Settings, x: torch.Tensor, variants: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Returns the variant with the fastest short run, and why others do not work here."""
    seconds, failed = {}, {}
    for variant in (variants[0], *variants):  # the first run of all is for the caches, and does not count
        try:
            seconds[variant] = _timed(train, _warm_up(settings, x, variant))[1]
        except Exception as error:
            if variant == variants[0]:
                raise
            failed[variant] = str(error).splitlines()[0].split(". ")[0]
    print(f"seconds for {_WARM_UP_STEPS} steps: {seconds}", file=sys.stderr)
    return min(seconds, key=seconds.__getitem__), failed


def _timed(train: Train, job: Job) -> tuple[Trained, float]:
    gc.collect()
    torch.manual_seed(job.settings.seed)
    began = time.perf_counter()
    trained = train(job)
    if job.settings.device == "cuda":
        torch.cuda.synchronize()
    return trained, time.perf_counter() - began


def _start_memory(device: str) -> int:
    """Forgets peaks so far; returns the bytes held now, by the process or on a GPU by torch's tensors."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_memory(device)


def _peak_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not getrusage's ru_maxrss: a process inherits it from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@torch.no_grad()
def _evaluate(trained: Trained, settings: Settings) -> dict[str, Any]:
    """Writes the arrays that the parent judges by; returns the mean number of latents above 0."""
    x = np.load(settings.held_out)
    x_hat = np.empty_like(x)
    active = np.empty((len(x), -(-settings.latents // 8)), np.uint8)
    total = 0
    for first in range(0, len(x), _EVALUATE_ROWS):
        rows = slice(first, first + _EVALUATE_ROWS)
        guess, latents = trained.reconstruct(torch.from_numpy(x[rows]).to(settings.device))
        x_hat[rows] = guess.float().cpu().numpy()
        fires = (latents > 0).cpu().numpy()
        active[rows], total = np.packbits(fires, axis=1), total + fires.sum()
    out = Path(settings.out)
    np.save(out / "x_hat.npy", x_hat)
    np.save(out / "active.npy", active)
    np.save(out / "decoder.npy", trained.decoder.detach().float().cpu().numpy())
    return {"l0": float(total) / len(x)}
