"""Training one SAE: schedule, loop, log. `step` explains one step."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import sys
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sae import device as devices
from sae.autoencoder import SparseAutoencoder
from sae.errors import InputError
from sae.files import whole
from sae.store import Activations
from sae.training.autograd import AutogradStep
from sae.training.checkpoint import Checkpoint
from sae.training.config import Source, TrainConfig
from sae.training.feed import Feed
from sae.training.start import untrained
from sae.training.step import Step

try:
    from sae.training.sparse import SparseStep
except ImportError:  # no numba for this machine or Python: the same numbers, slower
    SparseStep = None  # type: ignore[assignment, misc]  # a class everywhere else

_LOG_ROWS = 200  # about how many rows training.csv gets


def default_lr(latents: int, steps: int, batch: int) -> float:
    """Returns the learning rate for a dictionary of this size and a run of `steps` steps of `batch` tokens.

    6.364e-3 · (800 / steps)^¼ · (batch / 4096)^0.6, at most 1e-2, times √(3072 / latents) above 3,072 latents. The
    slope by latents is Gao et al.'s (2024, arXiv 2406.04093), whose constant was made for billions of tokens. The rest
    was chosen on layers of two ViTs and a planted dictionary, in runs of 100 to 900 steps with batches of 512 to 4,096
    tokens: half the rate leaves an FVU a tenth to a sixth higher, twice the rate kills latents of a late layer.
    """
    rate = min(1e-2, 6.364e-3 * (800 / steps) ** 0.25 * (batch / 4096) ** 0.6)
    return rate * min(1.0, math.sqrt(3072 / latents))


def train(
    x: np.ndarray | torch.Tensor | Activations,
    config: TrainConfig,
    seed: int = 0,
    device: str = "auto",
    source: Source | None = None,
    log: str | Path | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 30,
) -> SparseAutoencoder:
    """Trains an SAE on activations; see `step` for the loss and `SparseAutoencoder` for the methods.

    On a CPU the same arguments give bitwise identical weights on the same machine, also after an interruption, and for
    the k-sparse methods with any number of threads. On a GPU this needs `config.deterministic`. A tensor that lies on a
    CUDA device stays there.

    Args:
        x: Activations [n, d], or a store of them.
        config: See `TrainConfig`.
        device: auto, cpu, cuda, cuda:N or mps.
        source: Where x comes from, kept in the SAE, and its statistics if they are known.
        log: A CSV file with a row per logged step: step, epoch, tokens, loss, fvu, l0, dead, lr.
        checkpoint: A file from which an interrupted run with the same arguments continues; removed at the end.
        checkpoint_every: Seconds between checkpoints, or more where one would take over 1 % of the time. 0: a
            checkpoint after every step. On a GPU only after a step of the log.

    Returns:
        The SAE. Its `record` has tokens, steps, precision, device.

    Raises:
        InputError: x is not finite or too small for one batch, the device lacks the precision, the loss stopped being
            finite, or the checkpoint belongs to other arguments.
    """
    x = x if isinstance(x, Activations) else Activations.of(x)
    source, target = source or Source(), devices.resolve(device)
    name = f"k {config.k}" if source.layer is None else f"layer {source.layer} k {config.k}"
    per_image = x.tokens if config.whole_images else 1
    if len(x) * x.tokens < config.batch * per_image:
        have, unit = (len(x), "images") if config.whole_images else (len(x) * x.tokens, "tokens")
        raise InputError(f"batch {config.batch}: there are only {have} {unit} to train on; lower training.batch")
    try:
        source = source.measured(x)
    except InputError as error:
        raise InputError(f"{name}, before step 1: {error}") from error
    variance = source.variance.mean() * (source.scale**2 if config.input == "standardised" else 1.0)

    feed = Feed(x, config, seed, target)
    steps, tokens = config.epochs * feed.steps_per_epoch, config.epochs * len(x) * x.tokens
    lr = config.lr or default_lr(config.latents, steps, config.batch * per_image)
    model = untrained(x, config, source, seed).to(target)
    step = fastest_step(model, config, tokens, steps)
    saved = Checkpoint(checkpoint, _identity(x, step, source, seed), checkpoint_every)
    rows: list[dict[str, float]] = []
    every, seen, seconds = max(1, steps // _LOG_ROWS), 0, 0.0
    with closing(step), devices.deterministic(target) if config.deterministic else nullcontext():
        past = saved.load()
        if past is not None:
            state, (rows, seen, seconds) = past
            step.restore(state)
        began = time.perf_counter() - seconds
        with tqdm(total=tokens, initial=seen, desc=name, unit="token", unit_scale=True) as progress:
            for epoch, raw in feed.batches(step.count):
                rate = lr * config.lr_per_epoch**epoch * _ramp(step.count, steps, config)
                step(raw, rate)
                seen += len(raw)
                progress.update(len(raw))
                logged = step.count % every == 0 or step.count == steps or target.type == "cpu"
                due = saved.due() if logged else False  # a report lets a GPU's step look for dead latents: see there
                if logged:  # on a GPU, a report waits for the step
                    now = step.report()
                    if not math.isfinite(now["loss"]):
                        kept = f"; {checkpoint} holds the last good state, step {saved.step}" if saved.step else ""
                        problem = f"the loss is not finite; lower training.lr (now {lr:g})"
                        raise InputError(f"{name}, step {step.count}: {problem}{kept}")
                if step.count % every == 0 or step.count == steps:
                    row = {"step": step.count, "epoch": epoch, "tokens": seen, "loss": now["loss"]}
                    row |= {"fvu": now["error"] / variance, "l0": now["l0"], "dead": now["dead"], "lr": rate}
                    rows.append(row)
                if due:
                    saved.write(step, (rows, seen, time.perf_counter() - began))
                if step.count % feed.steps_per_epoch == 0 and rows:
                    speed = seen / (time.perf_counter() - began)
                    summary = f"{name} epoch {epoch + 1}/{config.epochs}: FVU {rows[-1]['fvu']:.3f} "
                    summary += f"L0 {rows[-1]['l0']:.1f} dead {rows[-1]['dead']:.1%}, {speed:,.0f} tokens/s"
                    progress.write(summary, file=sys.stderr)
    if log is not None:
        _write_log(log, rows)
    model.record = {"tokens": seen, "steps": step.count, "precision": step.precision, "device": target.type}
    saved.remove()
    return model.eval().requires_grad_(False)


def fastest_step(model: SparseAutoencoder, config: TrainConfig, tokens: int, steps: int) -> Step:
    """Returns the fastest kind of step for this SAE on its device, with the precision that the config asks for.

    Args:
        tokens: Of the whole run.
        steps: Of the whole run.

    Raises:
        InputError: The device has no such precision for this method.
    """
    target = model.b_dec.device
    sparse = SparseStep is not None and target.type == "cpu" and config.method not in ("relu", "jumprelu")
    gpu = _gpu_step(model) if target.type == "cuda" else None
    precision, int8 = config.precision, sparse and devices.fast_int8(target)
    if precision == "auto":
        precision = "int8" if int8 else "bf16" if devices.fast_bf16(target) else "fp32"
    if precision == "int8" and not int8:
        raise InputError(
            f"precision int8: not possible for method {config.method} on this {target.type}; write auto, bf16 or fp32"
        )
    kind: type[Step] = SparseStep if sparse else gpu or AutogradStep
    return kind(model, config, config.dead_after * tokens, steps, precision)


def _gpu_step(model: SparseAutoencoder) -> type[Step] | None:
    """Returns the sparse step for CUDA if it can train this SAE."""
    try:
        from triton.runtime import driver  # here, since it takes a quarter of a second

        from sae.training import gpu

        driver.active.get_current_device()
    except Exception as error:  # no Triton for this machine, or no compiler, which it needs for its driver
        print(f"training by dense steps, several times slower: Triton does not work here: {error}", file=sys.stderr)
        return None
    return gpu.GpuStep if gpu.trains(model.config) else None


def _identity(x: Activations, step: Step, source: Source, seed: int) -> dict[str, Any]:
    """Returns all settings on which a run depends: a run may not continue from a checkpoint of other settings."""
    device = step.model.b_dec.device.type
    data = hashlib.sha256(source.mean.tobytes() + source.variance.tobytes() + x.ids.tobytes()).hexdigest()[:16]
    return {
        **json.loads(json.dumps(dataclasses.asdict(step.config))),
        **{"width": x.width, "layer": source.layer, "tokens": source.tokens, "seed": seed, "device": device},
        **{"precision": step.precision, "deterministic": step.config.deterministic or device == "cpu"},
        **{"step": type(step).__name__, "data": data},
    }


def _ramp(step: int, steps: int, config: TrainConfig) -> float:
    """Returns the learning rate's factor: linear warm-up, flat, linear decay."""
    up = (step + 1) / max(1, config.warmup * steps)
    down = (steps - step) / max(1, config.decay * steps)
    return min(1.0, up if config.warmup else 1.0, down if config.decay else 1.0)


def _write_log(path: str | Path, rows: list[dict[str, float]]) -> None:
    with whole(path) as part, part.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
