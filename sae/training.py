"""Training one SAE: data order, optimiser, dead latents, log."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from sae import device as devices
from sae.activations import Activations, moments
from sae.autoencoder import Settings, SparseAutoencoder
from sae.errors import InputError
from sae.files import whole

_LOG_ROWS = 200  # about how many rows training.csv gets


@dataclass(frozen=True)
class Recipe:
    """How an SAE is trained; the defaults are the field's. Fractions are of the run's tokens or steps."""

    input: str = "standardised"  # or layernorm: see SparseAutoencoder
    decoder: str = "unit_norm"  # rows kept at norm 1; start: normalised at the start only
    whole_images: bool = False  # a batch counts images and keeps their tokens together
    lr: float | None = None  # of Adam; None: see `default_lr`
    lr_per_epoch: float = 1.0  # the learning rate is multiplied by this after each epoch
    warmup: float = 0.05  # linear from 0
    decay: float = 0.2  # linear to 0, at the end
    clip: float | None = 1.0  # the gradient's norm
    auxk: float = 1 / 32  # weight α of the auxiliary loss that revives dead latents; 0: none
    dead_after: float = 0.05  # a latent is dead once it has been silent for this fraction of the run's tokens


def default_lr(latents: int) -> float:
    """Returns the learning rate for a dictionary of this size: 2e-3 at 3,072 latents, falling as 1/√latents.

    The slope is Gao et al.'s (2024, arXiv 2406.04093), whose constant was made for billions of tokens. The height was
    chosen on short runs: on half a million tokens of a ViT layer, a third of it left an FVU half as high again.
    """
    return 2e-3 * math.sqrt(3072 / latents)


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
    recipe: Recipe | None = None,
    layer: int | None = None,
    tokens: str = "patches",
    centre: tuple[np.ndarray, float] | None = None,
    log: str | Path | None = None,
) -> SparseAutoencoder:
    """Trains an SAE on activations.

    The loss is the mean squared error over tokens and dimensions, plus `auxk` times the auxiliary loss of Gao et al.
    (2024, arXiv 2406.04093): the k_aux = min(d/2, dead) largest *dead* latents reconstruct the residual, detached,
    without the decoder's bias, relative to the residual's variance. With `unit_norm`, the part of the decoder's
    gradient along each row is removed before the step and the rows are normalised after it. The same arguments on the
    same machine and number of threads give the same bytes on a CPU.

    Args:
        x: activations [n, d], or a store of them.
        k: latents active per token.
        latents: F, the dictionary's size.
        method: topk.
        batch: tokens (images where `recipe.whole_images`) per step.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: of the encoder's product: fp32, bf16 (weights stay fp32), or auto: bf16 on a GPU that has it.
        layer, tokens: where x comes from; kept in the SAE.
        centre: the train set's mean [d] and scale; None: computed from x.
        log: a CSV with a row per logged step: step, epoch, tokens, loss, fvu, l0, dead, lr, tokens_per_s.

    Raises:
        InputError: the settings contradict each other, x is not finite, or the loss stopped being finite.
    """
    recipe = recipe or Recipe()
    x = x if isinstance(x, Activations) else Activations.of(x)
    target = devices.resolve(device)
    settings = Settings(x.width, latents, k, method, recipe.input, layer, tokens)
    if epochs < 1 or batch < 1:
        raise InputError(f"epochs {epochs}, batch {batch}: both must be at least 1")
    if precision not in ("auto", "fp32", "bf16"):
        raise InputError(f"precision {precision}: none of auto, fp32, bf16")
    bf16 = precision == "bf16" or (precision == "auto" and target.type == "cuda" and torch.cuda.is_bf16_supported())
    mean, variance = moments(x)
    if centre is not None:
        mean, scale = centre
    else:
        scale = math.sqrt(x.width / max(variance.sum(), 1e-30))
    sae = _start(settings, recipe, mean, scale, seed).to(target)
    raw_variance = variance.mean() * (scale**2 if recipe.input == "standardised" else 1.0)

    lr = recipe.lr or default_lr(latents)
    optimiser = torch.optim.Adam(sae.parameters(), lr=lr, fused=target.type != "mps")
    steps_per_epoch = x.steps(batch, recipe.whole_images)
    steps = epochs * steps_per_epoch
    run_tokens = epochs * len(x) * x.tokens
    threshold = recipe.dead_after * run_tokens
    silent = torch.zeros(latents, device=target)  # tokens since each latent last fired
    every = max(1, steps // _LOG_ROWS)
    rng = np.random.default_rng([seed, 1])
    rows, step, seen, clock = [], 0, 0, time.perf_counter()
    name = f"layer {layer} k {k}" if layer is not None else f"k {k}"
    with tqdm(total=run_tokens, desc=name, unit="token", unit_scale=True) as progress:
        for epoch in range(epochs):
            for block in x.shuffled(batch, rng, recipe.whole_images):
                for group in optimiser.param_groups:
                    group["lr"] = lr * recipe.lr_per_epoch**epoch * _ramp(step, steps, recipe)
                raw = torch.from_numpy(np.ascontiguousarray(block)).to(target).float()
                with torch.autocast(target.type, torch.bfloat16, enabled=bf16):
                    loss, error, fired, indices = _step(sae, raw, silent > threshold, recipe)
                optimiser.zero_grad()
                loss.backward()
                if recipe.decoder == "unit_norm":
                    _remove_parallel(sae)
                if recipe.clip is not None:
                    torch.nn.utils.clip_grad_norm_(sae.parameters(), recipe.clip)
                optimiser.step()
                if recipe.decoder == "unit_norm":
                    _normalise(sae)
                silent += len(raw)
                silent[indices[fired]] = 0
                step, seen = step + 1, seen + len(raw)
                progress.update(len(raw))
                if step % every == 0 or step == steps:
                    rows.append(
                        {
                            "step": step,
                            "epoch": epoch,
                            "tokens": seen,
                            "loss": float(loss.detach()),
                            "fvu": float(error) / raw_variance,
                            "l0": float(fired.sum()) / len(raw),
                            "dead": float((silent > threshold).float().mean()),
                            "lr": optimiser.param_groups[0]["lr"],
                            "tokens_per_s": seen / (time.perf_counter() - clock),
                        }
                    )
                    if not math.isfinite(rows[-1]["loss"]):
                        where = f"{name}, step {step}"
                        raise InputError(f"{where}: the loss is not finite; lower training.lr (now {lr:g})")
            last = rows[-1]
            summary = (
                f"{name} epoch {epoch + 1}/{epochs}: FVU {last['fvu']:.3f} L0 {last['l0']:.1f} dead {last['dead']:.1%}"
            )
            progress.write(summary, file=progress.fp)
    if log is not None:
        with whole(log) as part:
            pd.DataFrame(rows).to_csv(part, index=False)
    return sae.eval().requires_grad_(False)


def _start(settings: Settings, recipe: Recipe, mean: np.ndarray, scale: float, seed: int) -> SparseAutoencoder:
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


def _step(
    sae: SparseAutoencoder, raw: torch.Tensor, dead: torch.Tensor, recipe: Recipe
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the loss, the mean squared error, which selected latents fired [n, k] and their indices [n, k]."""
    target = sae.standardise(raw)
    pre = sae.pre_activations(target).to(raw.dtype)
    values, indices = sae.select(pre)
    residual = target - sae.combine(values, indices) - sae.b_dec
    error = residual.square().mean()
    loss = error
    k_aux = min(sae.settings.width // 2, int(dead.sum())) if recipe.auxk else 0
    if k_aux:
        candidates = pre.masked_fill(~dead, -torch.inf)
        guess = sae.combine(*sae.select(candidates, k_aux))
        rest = residual.detach()
        auxiliary = (rest - guess).square().mean() / rest.square().mean().clamp_min(1e-12)
        loss = error + recipe.auxk * auxiliary
    return loss, error.detach(), values > 0, indices


def _ramp(step: int, steps: int, recipe: Recipe) -> float:
    """Returns the learning rate's factor: linear warm-up, flat, linear decay."""
    up = (step + 1) / max(1, recipe.warmup * steps)
    down = (steps - step) / max(1, recipe.decay * steps)
    return min(1.0, up if recipe.warmup else 1.0, down if recipe.decay else 1.0)


@torch.no_grad()
def _remove_parallel(sae: SparseAutoencoder) -> None:
    gradient = sae.W_dec.grad
    gradient -= (gradient * sae.W_dec).sum(1, keepdim=True) * sae.W_dec


@torch.no_grad()
def _normalise(sae: SparseAutoencoder) -> None:
    sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)
