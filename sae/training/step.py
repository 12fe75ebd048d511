"""One step of training: gradients of the loss, Adam's update, a count of how long each latent has been silent.

Three classes compute the same numbers. `SparseStep`, on a CPU, and `GpuStep`, on a CUDA device, are for the k-sparse
methods: their kernels decode and differentiate only the active latents of a token, without autograd. `AutogradStep`
uses torch's differentiation, for every method and device. All split a batch into chunks, so that memory never holds a
[batch, F] matrix, except in `GpuStep` for batchtopk.

The loss is the mean squared error over tokens and dimensions plus `auxk` times the auxiliary loss of Gao et al. (2024,
arXiv 2406.04093): the k_aux = min(d/2, dead) largest *dead* latents reconstruct the residual, detached, without the
decoder's bias, relative to the residual's sum of squares. Where the methods (sources: see `SparseAutoencoder`) differ:

    topk         the k largest latents of each token
    batchtopk    the k·n largest latents of the n tokens of a batch; `threshold` follows the smallest of them
    matryoshka   topk; for the share `nested` of the run the error is the mean over prefixes of the dictionary, each of
                 which reconstructs by itself. Then only the term of the whole dictionary stays, with its weight: a
                 larger one would make Adam's steps too long until its second moment has followed
    archetypal   topk; every decoder row keeps a cosine of at least 0.8 with the centre of a cluster of tokens
    baselines    topk; see `config.BASELINES`
    relu         plus c · mean over tokens of Σ z_i ‖W_dec[i]‖
    jumprelu     plus 10 · (L0 / k - 1)²; by the threshold a step has a rectangle's slope, see `autograd`

relu starts with k latents active per token in the first batch, and c is adapted so that L0 stays at k: it grows while
L0 is above and shrinks while it is below. jumprelu's thresholds are those of batchtopk for three quarters of the run:
trained from the start, most of them end above all that their latent ever reaches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sae.autoencoder import SparseAutoencoder
from sae.training.config import TrainConfig

HELD = 0.8  # least cosine of a held decoder row with its start
_PREFIXES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of a Matryoshka dictionary


@dataclass(frozen=True)
class Rows:
    """A lazy selection of rows: the rows of a matrix [N, d] with these numbers [n].

    Slicing copies the selected rows, so each worker thread gathers its own.
    """

    matrix: torch.Tensor
    numbers: torch.Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, part: slice) -> torch.Tensor:
        return self.matrix.index_select(0, self.numbers[part])


class Step(ABC):
    """The common part of all kinds of step. A call with rows [n, d] in the units of x and a learning rate does a step.

    Args:
        model: The SAE, trained in place.
        dead_after: A latent is dead after it was silent for more than this number of tokens.
        steps: Of the whole run.
        precision: Of the matrix products; weights, sums and Adam's state stay as they are. fp32: as the weights, which
            may be float64. bf16: rounded to bfloat16. int8: as bf16, but the encoder's product uses 8-bit integers,
            with a scale for each token and each latent.

    Attributes:
        grads: Gradients of the trained parameters, as `gradients` leaves them.
        rows: Tokens in a chunk.
        prefixes: The ends of all prefixes whose errors the loss is the mean of.
        silent: int64 [F], tokens since each latent was active.
        count: Steps done.
    """

    rows: int

    def __init__(self, model: SparseAutoencoder, config: TrainConfig, dead_after: float, steps: int, precision: str):
        self.model, self.config, self.precision = model, config, precision
        self.dead_after, self.steps = dead_after, steps
        self.count = 0
        latents = model.config.latents
        shares = _PREFIXES if model.config.method == "matryoshka" else (1,)
        self.prefixes = sorted({max(1, round(share * latents)) for share in shares})
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.grads = {name: torch.zeros_like(p) for name, p in self.trained.items()}
        self.unit_norm = config.decoder in ("unit_norm", "held")
        self._start = model.W_dec.detach().clone() if config.decoder == "held" else None
        self.silent = torch.zeros(latents, dtype=torch.int64, device=model.b_dec.device)

    @property
    def ends(self) -> list[int]:
        """The ends of the prefixes of the dictionary that reconstruct in this step."""
        return self.prefixes if self.count < self.config.nested * self.steps else self.prefixes[-1:]

    @abstractmethod
    def __call__(self, raw: torch.Tensor | Rows, lr: float) -> None: ...

    @abstractmethod
    def report(self) -> dict[str, float]:
        """Returns loss, error (the loss's mean squared error), l0 and the share of dead latents of the last step."""

    @abstractmethod
    def gradients(self, raw: torch.Tensor | Rows) -> float | None:
        """Computes the gradients of all parameters at rows [n, d], before clipping, into `grads`."""

    @abstractmethod
    def _moments(self) -> dict[str, torch.Tensor]:
        """Returns Adam's state, which may be changed in place."""

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the state needed to resume, as CPU tensors. Tensors that are on the CPU already are not copied."""
        own = {"silent": self.silent, "count": torch.tensor(self.count)}
        return {name: value.detach().cpu() for name, value in (self.model.state_dict() | self._moments() | own).items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Continues from a `state`."""
        self.count = int(state["count"])
        with torch.no_grad():
            for name, value in (self.model.state_dict() | self._moments() | {"silent": self.silent}).items():
                value.copy_(state[name])

    @torch.no_grad()
    def _hold(self, first: int = 0, last: int | None = None) -> None:
        """Turns held decoder rows of norm 1 back where they left their start too far."""
        if self._start is None:
            return
        rows, start = self.model.W_dec[first:last], self._start[first:last]
        along = (rows * start).sum(1, keepdim=True)
        across = rows - along * start
        across = across / across.norm(dim=1, keepdim=True).clamp_min(1e-12)
        rows.copy_(F.normalize(torch.where(along < HELD, HELD * start + (1 - HELD**2) ** 0.5 * across, rows)))

    def close(self) -> None:  # noqa: B027
        """Ends the step's threads, if it has any."""

    def _rate(self) -> float:
        """Returns this step's weight in a running mean over about the last 20th of the run's steps."""
        return max(1 / (self.count + 1), min(1.0, 20 / self.steps))
