"""Training one SAE: data order, schedule, log. What one step does is in `steps`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from sae import device as devices
from sae.activations import Activations, moments, tensor
from sae.autoencoder import METHODS, SAEConfig, SparseAutoencoder
from sae.errors import InputError
from sae.files import whole
from sae.training.autograd import AutogradStep
from sae.training.checkpoint import Checkpoint
from sae.training.step import Recipe, Rows, Step

try:
    from sae.training.sparse import SparseStep
except ImportError:  # no numba for this machine or Python: the same numbers, slower
    SparseStep = None

_LOG_ROWS = 200  # about how many rows training.csv gets


def default_lr(latents: int, steps: int, batch: int) -> float:
    """Returns the learning rate for a dictionary of this size and a run of so many steps of `batch` tokens.

    6.364e-3 · (800 / steps)^¼ · (batch / 4096)^0.6, at most 1e-2, times √(3072 / latents) above 3,072 latents. The
    slope by latents is Gao et al.'s (2024, arXiv 2406.04093), whose constant was made for billions of tokens. The rest
    was chosen on layers of two ViTs and a planted dictionary, in runs of 100 to 900 steps with batches of 512 to 4,096
    tokens: half of it leaves an FVU a tenth to a sixth higher, twice of it kills latents of a late layer.
    """
    rate = min(1e-2, 6.364e-3 * (800 / steps) ** 0.25 * (batch / 4096) ** 0.6)
    return rate * min(1.0, math.sqrt(3072 / latents))


def train(
    x: np.ndarray | torch.Tensor | Activations,
    k: int,
    latents: int,
    method: str = "topk",
    seed: int = 0,
    epochs: int = 1,
    batch: int = 4096,
    device: str = "auto",
    precision: str = "auto",
    deterministic: bool = False,
    recipe: Recipe | None = None,
    layer: int | None = None,
    tokens: str = "patches",
    centre: tuple[np.ndarray, float] | None = None,
    log: str | Path | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 30,
) -> SparseAutoencoder:
    """Trains an SAE on activations; see `steps` for the loss and `SparseAutoencoder` for the methods.

    On a CPU the same arguments give the same bytes on the same machine, whether or not the run was interrupted, and
    for the k-sparse methods with any number of threads. On a GPU ask for it by `deterministic`.

    Args:
        x: activations [n, d], or a store of them.
        k: latents active per token; on average for batchtopk, relu and jumprelu.
        latents: F, the dictionary's size.
        method: topk, batchtopk, matryoshka, relu, jumprelu, or the baseline frozen.
        batch: tokens (images where `recipe.whole_images`) per step.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: of what is multiplied (weights, sums and Adam's state stay fp32): fp32; bf16; int8, which is bf16
            with the encoder's product, of the k-sparse methods on a CPU, in scaled 8-bit integers; or auto, the one
            that the hardware multiplies fastest.
        deterministic: on a GPU, of all operations those alone that give the same bytes each time: slower.
        layer, tokens: where x comes from; kept in the SAE.
        centre: the train set's mean [d] and scale; None: computed from x.
        log: a CSV with a row per logged step: step, epoch, tokens, loss, fvu, l0, dead, lr.
        checkpoint: a file from which an interrupted run with the same arguments goes on; removed at the end.
        checkpoint_every: seconds; more where writing one would take over 1 % of the time.

    Returns:
        the SAE, its `record` filled: tokens, steps, seconds, tokens_per_s, precision, device.

    Raises:
        InputError: the settings contradict each other, x is not finite or too small for one batch, the loss stopped
            being finite, or the checkpoint belongs to other arguments.
    """
    recipe = recipe or Recipe()
    if method == "frozen":
        recipe = dataclasses.replace(recipe, decoder="frozen")
    x = x if isinstance(x, Activations) else Activations.of(x)
    target = devices.resolve(device)
    settings = SAEConfig(x.width, latents, k, method, recipe.input, layer, tokens)
    name = f"layer {layer} k {k}" if layer is not None else f"k {k}"
    _check(x, method, epochs, batch, precision, recipe)
    try:
        mean, variance = moments(x)
    except InputError as error:
        raise InputError(f"{name}, before step 1: {error}") from error
    if centre is not None:
        mean, scale = centre
    else:
        scale = math.sqrt(x.width / max(variance.sum(), 1e-30))
    raw_variance = variance.mean() * (scale**2 if recipe.input == "standardised" else 1.0)

    steps_per_epoch = x.steps(batch, recipe.whole_images)
    total = epochs * steps_per_epoch
    run_tokens = epochs * len(x) * x.tokens
    lr = recipe.lr or default_lr(latents, total, batch * (x.tokens if recipe.whole_images else 1))
    every = max(1, total // _LOG_ROWS)
    sae = _start(settings, recipe, mean, scale, seed).to(target)
    kind = _fastest(sae)
    precision = _fastest_precision(kind, target) if precision == "auto" else precision
    if precision == "int8" and not (kind is SparseStep and devices.fast_int8(target)):
        raise InputError(
            f"precision int8: method {method} on this {target.type} cannot multiply so; write auto, bf16 or fp32"
        )
    step = kind(sae, recipe, recipe.dead_after * run_tokens, total, precision)
    identity = {
        **dataclasses.asdict(settings),
        **{f"recipe.{key}": value for key, value in json.loads(json.dumps(dataclasses.asdict(recipe))).items()},
        **{"seed": seed, "epochs": epochs, "batch": batch, "precision": precision, "device": target.type},
        "deterministic": deterministic or target.type == "cpu",
        "step": type(step).__name__,
        "data": hashlib.sha256(mean.tobytes() + variance.tobytes() + x.ids.tobytes()).hexdigest()[:16],
    }
    saved = Checkpoint(checkpoint, identity, checkpoint_every)
    rows, seen, seconds = [], 0, 0.0
    with closing(step), devices.deterministic(target) if deterministic else nullcontext():
        past = saved.load()
        if past is not None:
            state, (rows, seen, seconds) = past
            step.restore(state)
        began = time.perf_counter() - seconds
        feed = _Feed(x, batch, recipe.whole_images, target)
        with tqdm(total=run_tokens, initial=seen, desc=name, unit="token", unit_scale=True) as progress:
            for epoch in range(step.count // steps_per_epoch, epochs):
                rng = np.random.default_rng([seed, 1, epoch])
                for raw in feed.epoch(rng, step.count - epoch * steps_per_epoch):
                    rate = lr * recipe.lr_per_epoch**epoch * _ramp(step.count, total, recipe)
                    step(raw, rate)
                    seen += len(raw)
                    progress.update(len(raw))
                    logged = step.count % every == 0 or step.count == total
                    due = saved.due()
                    if logged or due or target.type == "cpu":  # elsewhere asking means waiting
                        now = step.report()
                        if not math.isfinite(now["loss"]):
                            kept = f"; {checkpoint} holds the last good state, step {saved.step}" if saved.step else ""
                            what = f"the loss is not finite; lower training.lr (now {lr:g})"
                            raise InputError(f"{name}, step {step.count}: {what}{kept}")
                    if logged:
                        row = {"step": step.count, "epoch": epoch, "tokens": seen, "loss": now["loss"]}
                        row |= {"fvu": now["error"] / raw_variance, "l0": now["l0"], "dead": now["dead"], "lr": rate}
                        rows.append(row)
                    if due:
                        saved.write(step, (rows, seen, time.perf_counter() - began))
                speed = seen / (time.perf_counter() - began)
                summary = f"{name} epoch {epoch + 1}/{epochs}: FVU {rows[-1]['fvu']:.3f} L0 {rows[-1]['l0']:.1f} "
                summary += f"dead {rows[-1]['dead']:.1%}, {speed:,.0f} tokens/s"
                progress.write(summary, file=progress.fp)
    if log is not None:
        with whole(log) as part:
            pd.DataFrame(rows).to_csv(part, index=False)
    seconds = time.perf_counter() - began
    sae.record = {
        **{"tokens": seen, "steps": step.count, "seconds": round(seconds, 3), "tokens_per_s": round(seen / seconds)},
        **{"precision": precision, "device": target.type},
    }
    saved.remove()
    return sae.eval().requires_grad_(False)


def _check(x: Activations, method: str, epochs: int, batch: int, precision: str, recipe: Recipe) -> None:
    if method not in (*METHODS, "frozen"):
        raise InputError(f"method {method}: not trained; there are {', '.join(METHODS)} and frozen")
    if epochs < 1 or batch < 1:
        raise InputError(f"epochs {epochs}, batch {batch}: both must be at least 1")
    if precision not in ("auto", "fp32", "bf16", "int8"):
        raise InputError(f"precision {precision}: none of auto, fp32, bf16, int8")
    have, unit = (len(x), "images") if recipe.whole_images else (len(x) * x.tokens, "tokens")
    if have < batch:
        raise InputError(f"batch {batch}: there are only {have} {unit} to train on; lower training.batch")


def _start(settings: SAEConfig, recipe: Recipe, mean: np.ndarray, scale: float, seed: int) -> SparseAutoencoder:
    """Returns the untrained SAE: random decoder rows of norm 1, the encoder their copy (tied start)."""
    standardised = settings.input == "standardised"
    sae = SparseAutoencoder(
        settings, torch.tensor(mean).float() if standardised else None, scale if standardised else 1.0
    )
    generator = torch.Generator().manual_seed(seed)
    bound = settings.width**-0.5
    rows = torch.empty(settings.latents, settings.width).uniform_(-bound, bound, generator=generator)
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(rows))
        # The notebook's decoder is the normalised copy of an ordinary linear encoder; the field's encoder is the copy.
        sae.W_enc.copy_(rows if recipe.decoder == "start" else sae.W_dec)
    return sae


def _fastest(sae: SparseAutoencoder) -> type[Step]:
    """Returns the fastest kind of step for this SAE where it is."""
    sparse = SparseStep is not None and sae.config.method in ("topk", "batchtopk", "matryoshka", "frozen")
    return SparseStep if sparse and sae.b_dec.device.type == "cpu" else AutogradStep


def _fastest_precision(kind: type[Step], target: torch.device) -> str:
    """Returns what this kind of step multiplies fastest on this device."""
    if kind is SparseStep and devices.fast_int8(target):
        return "int8"
    return "bf16" if devices.fast_bf16(target) else "fp32"


def _ramp(step: int, steps: int, recipe: Recipe) -> float:
    """Returns the learning rate's factor: linear warm-up, flat, linear decay."""
    up = (step + 1) / max(1, recipe.warmup * steps)
    down = (steps - step) / max(1, recipe.decay * steps)
    return min(1.0, up if recipe.warmup else 1.0, down if recipe.decay else 1.0)


class _Feed:
    """The batches of each epoch on the device where they are needed.

    On CUDA the activations stay in device memory where they fit, on a CPU where they are if they lie in memory: then
    only row numbers are drawn. Otherwise a thread reads ahead. The order is the same everywhere.
    """

    def __init__(self, x: Activations, batch: int, whole_images: bool, target: torch.device):
        self._x, self._batch, self._whole, self._target = x, batch, whole_images, target
        self._resident: torch.Tensor | None = None
        if target.type == "cpu" and x.dense is not None:
            self._resident = tensor(x.dense)
        if target.type == "cuda":
            first = x.read(np.arange(1))
            if first.nbytes * len(x) < 0.6 * torch.cuda.mem_get_info(target)[0]:
                blocks = (torch.from_numpy(block).to(target) for _ids, block in x.blocks(max(1, 2**26 // first.nbytes)))
                self._resident = torch.cat([block.reshape(-1, x.width) for block in blocks])

    def epoch(self, rng: np.random.Generator, skip: int) -> Iterator[torch.Tensor | Rows]:
        """Yields the batches [n, d] of an epoch, as stored, without the first `skip`."""
        read = self._x.read if self._resident is None else self._x.places
        blocks = islice(self._x.shuffled(self._batch, rng, self._whole, read), skip, None)
        parts = (torch.from_numpy(np.ascontiguousarray(block)) for block in blocks)
        if self._target.type == "cuda":
            parts = (part.to(self._target, non_blocking=True) for part in _ahead(part.pin_memory() for part in parts))
        elif self._resident is None:
            parts = _ahead(parts)
        for part in parts:
            yield part if self._resident is None else Rows(self._resident, part)


def _ahead(items: Iterator[Any], depth: int = 4) -> Iterator[Any]:
    """Yields the items, up to `depth` of them made ahead by a thread. An error in making one is raised here."""
    line: Queue[tuple[str, Any]] = Queue(depth)
    leaving = False

    def work() -> None:
        try:
            for item in items:
                line.put(("item", item))
                if leaving:
                    return
            line.put(("end", None))
        except BaseException as error:
            line.put(("error", error))

    Thread(target=work, daemon=True).start()
    try:
        while True:
            kind, value = line.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        leaving = True
        while not line.empty():
            line.get_nowait()
