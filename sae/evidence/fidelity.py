"""Numbers about a reconstruction: pure functions, sums in float64, each with its formula."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from sae.activations import Activations, moments
from sae.autoencoder import SparseAutoencoder

DENSE = 0.1  # a latent that fires on more than this share of the tokens is called dense
DENSITY_BINS = np.arange(-6, 0.01, 0.25)  # log10 of the share of tokens on which a latent fires


def fvu(x: np.ndarray, x_hat: np.ndarray) -> float:
    """Fraction of variance unexplained: Σ‖x - x̂‖² / Σ‖x - mean‖², for x and x̂ [n, d].

    `mean` is x's own mean vector, so that predicting it gives 1 exactly; a constant offset in x̂ counts in full.
    """
    x, x_hat = np.asarray(x, np.float64), np.asarray(x_hat, np.float64)
    return float(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def cosine(x: np.ndarray, x_hat: np.ndarray) -> float:
    """Mean cosine of each row of x with its reconstruction, uncentred, for x and x̂ [n, d]; 0 for a zero row."""
    x, x_hat = np.asarray(x, np.float64), np.asarray(x_hat, np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(x_hat, axis=1)
    return float(((x * x_hat).sum(1) / np.maximum(lengths, 1e-300)).mean())


def recovered(clean: float, spliced: float, ablated: float) -> float:
    """Share of the loss that an ablation costs which the SAE keeps: (ablated - spliced) / (ablated - clean).

    1: as good as the untouched model; 0: no better than the ablation; below 0: worse. NaN where the ablation costs
    less than 1e-3 nats: the rounding of stored activations costs as much, and a ratio of two such numbers means
    nothing. Source: "loss recovered" of Bricken et al. 2023 (Towards Monosemanticity).
    """
    return (ablated - spliced) / (ablated - clean) if ablated - clean > 1e-3 else float("nan")


def kl(logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(softmax(logits) ‖ softmax(other)) in nats for each row of [n, classes]: [n], float64."""
    p, q = logits.double().log_softmax(1), other.double().log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


@torch.inference_mode()
def at_other_ks(sae: SparseAutoencoder, x: Activations, ks: Sequence[int]) -> pd.DataFrame:
    """Returns at_k, fvu and l0 of the tokens of `x` when only the `at_k` largest latents of each token are kept.

    A row per number of `ks` that is at most F, in one streaming pass. Positive latents alone count, as in `select`.
    """
    device = sae.b_dec.device
    ks = sorted({k for k in ks if k <= sae.settings.latents})
    error, active, rows = np.zeros(len(ks)), np.zeros(len(ks)), 0
    for _ids, block in x.blocks(max(1, 2**23 // (x.tokens * sae.settings.latents))):
        exact = block.reshape(-1, x.width).astype(np.float64)
        pre = sae.pre_activations(sae.standardise(torch.from_numpy(block.reshape(-1, x.width)).to(device).float()))
        values, indices = pre.topk(ks[-1], dim=-1)
        values = values.relu()
        x_hat, start = sae.b_dec, 0
        for place, k in enumerate(ks):
            x_hat = x_hat + sae.combine(values[:, start:k], indices[:, start:k])
            error[place] += float(((exact - (x_hat / sae.scale + sae.mean).cpu().double().numpy()) ** 2).sum())
            active[place] += float((values[:, :k] > 0).sum())
            start = k
        rows += len(exact)
    return pd.DataFrame({"at_k": ks, "fvu": error / float(moments(x)[1].sum() * rows), "l0": active / rows})


@torch.inference_mode()
def reconstruction(sae: SparseAutoencoder, x: Activations) -> dict[str, float | list[float]]:
    """Returns how well and how sparsely the SAE reconstructs the tokens of `x`, in one streaming pass.

    fvu, cosine: as the functions of these names. l0: mean number of latents above 0 per token. dead: share of the
    latents that fire on no token of `x`. dense: share that fire on more than 10 % of the tokens. density_histogram:
    how many latents fire on a share of the tokens within each bin of DENSITY_BINS (log10), dead ones left out.
    """
    device = sae.b_dec.device
    error = cosines = 0.0
    rows = 0
    counts = torch.zeros(sae.settings.latents, dtype=torch.int64)
    for _ids, block in x.blocks(max(1, 2**23 // (x.tokens * sae.settings.latents))):
        tokens = torch.from_numpy(block.reshape(-1, x.width)).to(device).float()
        values, indices = sae.encode_sparse(tokens)
        x_hat = ((sae.combine(values, indices) + sae.b_dec) / sae.scale + sae.mean).cpu().double().numpy()
        exact = block.reshape(-1, x.width).astype(np.float64)
        error += float(((exact - x_hat) ** 2).sum())
        cosines += cosine(exact, x_hat) * len(exact)
        rows += len(exact)
        counts += torch.bincount(indices[values > 0].cpu(), minlength=len(counts))
    density = counts.numpy() / rows
    fired = density > 0
    return {
        "fvu": error / float(moments(x)[1].sum() * rows),
        "cosine": cosines / rows,
        "l0": float(density.sum()),
        "dead": float((~fired).mean()),
        "dense": float((density > DENSE).mean()),
        "tokens": rows,
        "density_histogram": np.histogram(np.log10(density[fired]), DENSITY_BINS)[0].tolist(),
    }
