"""Numbers about a reconstruction: pure functions, sums in float64, each with its formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from sae.evidence.measures import DENSE

if TYPE_CHECKING:
    from torch import Tensor

    from sae.autoencoder import SparseAutoencoder

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
    """Share of the loss of an ablation that the SAE recovers: (ablated - spliced) / (ablated - clean).

    1: as good as the untouched model; 0: no better than the ablation; below 0: worse. NaN where the ablation costs less
    than 1e-3 nats: the rounding of stored activations has costs of that size. Source: "loss recovered" of Bricken et
    al. 2023 (Towards Monosemanticity).
    """
    return (ablated - spliced) / (ablated - clean) if ablated - clean > 1e-3 else float("nan")


def kl(logits: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(softmax(logits) ‖ softmax(other)) in nats for each row of [n, classes]: [n], float64."""
    p, q = (log_softmax(np.asarray(part, np.float64), 1) for part in (logits, other))
    return (np.exp(p) * (p - q)).sum(1)


class Fidelity:
    """How well and how sparsely a dictionary reconstructs held-out tokens, summed block by block.

    Args:
        latents: F.
        ks: other numbers of latents to keep per token; those above F are left out.
    """

    def __init__(self, latents: int, ks: Sequence[int] = ()):
        self._ks = [k for k in sorted({*ks}) if k <= latents]
        self._error = self._cosines = 0.0
        self._rows = 0
        self._fired = np.zeros(latents, np.int64)
        self._error_at, self._active_at = np.zeros(len(self._ks)), np.zeros(len(self._ks))

    def add(
        self,
        model: SparseAutoencoder,
        block: np.ndarray,
        x_hat: Tensor,
        values: Tensor,
        indices: Tensor,
        pre: Tensor,
    ) -> np.ndarray:
        """Adds some images and returns Σ‖x - x̂‖² of each, float64 [images].

        Args:
            block: their tokens, [images, tokens, d].
            x_hat: the reconstruction of these, [rows, d].
            values, indices: the active latents, [rows, m]; see `SparseAutoencoder.select`.
            pre: the pre-activations, [rows, F].
        """
        exact = block.reshape(-1, block.shape[2]).astype(np.float64)
        guess = x_hat.cpu().double().numpy()
        errors = np.square(exact - guess).sum(1).reshape(len(block), -1).sum(1)
        self._error += float(errors.sum())
        self._cosines += cosine(exact, guess) * len(exact)
        self._rows += len(exact)
        self._fired += np.bincount(indices[values > 0].cpu().numpy(), minlength=len(self._fired))
        if self._ks:
            self._add_other_ks(model, exact, pre)
        return errors

    def _add_other_ks(self, model: SparseAutoencoder, exact: np.ndarray, pre: Tensor) -> None:
        # Positive latents alone count, as in `select`.
        values, indices = model.select(pre, self._ks[-1])
        values, order = values.sort(dim=-1, descending=True)
        indices = indices.gather(1, order)
        start = 0
        x_hat: Tensor = model.b_dec
        for place, k in enumerate(self._ks):
            x_hat = x_hat + model.combine(values[:, start:k], indices[:, start:k])
            guess = (x_hat / model.scale + model.mean).cpu().double().numpy()
            self._error_at[place] += float(np.square(exact - guess).sum())
            self._active_at[place] += float((values[:, :k] > 0).sum())
            start = k

    def row(self, variance: np.ndarray) -> dict[str, Any]:
        """Returns the numbers; `variance` is that of all these tokens in each dimension, float64 [d].

        fvu, cosine: as the functions of these names. l0: mean number of latents above 0 per token. dead: share of the
        latents that fire on no token. dense: share that fire on more than 10 % of the tokens. density_histogram: how
        many latents fire on a share of the tokens within each bin of DENSITY_BINS (log10), dead ones left out.
        """
        density = self._fired / self._rows
        fired = density > 0
        return {
            "fvu": self._error / float(variance.sum() * self._rows),
            "cosine": self._cosines / self._rows,
            "l0": float(density.sum()),
            "dead": float((~fired).mean()),
            "dense": float((density > DENSE).mean()),
            "tokens": self._rows,
            "density_histogram": np.histogram(np.log10(density[fired]), DENSITY_BINS)[0].tolist(),
        }

    def other_ks(self, variance: np.ndarray) -> pd.DataFrame:
        """Returns at_k, fvu and l0 when only the `at_k` largest latents of each token are kept, a row per number."""
        fvu = self._error_at / float(variance.sum() * self._rows)
        return pd.DataFrame({"at_k": self._ks, "fvu": fvu, "l0": self._active_at / self._rows})
