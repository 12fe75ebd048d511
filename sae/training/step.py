"""One step of training: the gradients of the loss, Adam's update, which latents are dead. Two ways to the same numbers.

`sparse_step` is for the k-sparse methods on a CPU: only the active latents of a token are decoded and differentiated,
by the kernels, without autograd. `autograd_step` is torch's own differentiation, for every method and device. Both take
the rows of a batch in chunks, so that no [batch, F] matrix is ever held whole.

The loss is the mean squared error over tokens and dimensions plus `auxk` times the auxiliary loss of Gao et al. (2024,
arXiv 2406.04093): the k_aux = min(d/2, dead) largest *dead* latents reconstruct the residual, detached, without the
decoder's bias, relative to the residual's sum of squares. Where the methods (sources: see `SparseAutoencoder`) differ:

    topk         the k largest latents of each token
    batchtopk    the k·n largest latents of the n tokens of a batch; `threshold` follows the smallest of them
    matryoshka   topk; the error is the mean over prefixes of the dictionary, each of which reconstructs on its own
    frozen       topk; the decoder's random rows stay as they are
    relu         plus c · mean over tokens of Σ z_i ‖W_dec[i]‖
    jumprelu     plus 10 · (L0 / k - 1)²; by the threshold a step has a rectangle's slope, see `autograd_step`

relu starts with k latents active per token in the first batch, and c is adapted so that L0 stays at k: it grows while
L0 is above and shrinks while it is below. jumprelu's thresholds are those of batchtopk for three quarters of the run:
trained from the start, most of them end above all that their latent ever reaches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from sae.autoencoder import SparseAutoencoder

PREFIXES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of a Matryoshka dictionary


@dataclass(frozen=True)
class Recipe:
    """How an SAE is trained; the defaults are the field's. Fractions are of the run's tokens or steps."""

    input: str = "standardised"  # or layernorm: see SparseAutoencoder
    decoder: str = "unit_norm"  # rows kept at norm 1; start: normalised at the start only; frozen: never trained
    whole_images: bool = False  # a batch counts images and keeps their tokens together
    lr: float | None = None  # of Adam; None: see `training.default_lr`
    betas: tuple[float, float] = (0.7, 0.99)  # Adam's: how much of its means of gradients and squares a step keeps
    lr_per_epoch: float = 1.0  # the learning rate is multiplied by this after each epoch
    warmup: float = 0.05  # linear from 0
    decay: float = 0.2  # linear to 0, at the end
    clip: float | None = 1.0  # the gradient's norm
    auxk: float = 1 / 32  # weight of the auxiliary loss that revives dead latents; 0: none
    dead_after: float = 0.01  # a latent is dead once it has been silent for this fraction of the run's tokens


@dataclass(frozen=True)
class Rows:
    """Rows of a matrix [N, d] by their numbers [n], gathered when they are sliced: by the thread that needs them."""

    matrix: torch.Tensor
    numbers: torch.Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, part: slice) -> torch.Tensor:
        return self.matrix.index_select(0, self.numbers[part])


class Step(ABC):
    """What both ways share. Calling it with rows [n, d] in the units of x and a learning rate does one step.

    Args:
        sae: trained in place.
        dead_after: tokens.
        steps: how many there will be.
        precision: of what is multiplied; weights, sums and Adam's state stay as they are. fp32: as the weights, which
            may be float64. bf16: rounded to bfloat16. int8: bf16, but the encoder's product is one of 8-bit integers,
            of which each row, of a token or of a latent, has its own scale.
    """

    def __init__(self, sae: SparseAutoencoder, recipe: Recipe, dead_after: float, steps: int, precision: str):
        self.sae, self.recipe, self.dead_after, self.steps, self.precision = sae, recipe, dead_after, steps, precision
        self.count = 0  # of steps done
        latents, method = sae.config.latents, sae.config.method
        shares = PREFIXES if method == "matryoshka" else (1,)
        self.ends = sorted({max(1, round(share * latents)) for share in shares})
        self.trained = {name: p for name, p in sae.named_parameters() if p.requires_grad}
        self.silent = torch.zeros(latents, dtype=torch.int64, device=sae.b_dec.device)  # tokens since it last fired

    @abstractmethod
    def __call__(self, raw: torch.Tensor | Rows, lr: float) -> None: ...

    @abstractmethod
    def report(self) -> dict[str, float]:
        """Returns the last step's loss, error (mean square, space of reconstruction), l0, and the share now dead."""

    @abstractmethod
    def _moments(self) -> dict[str, torch.Tensor]:
        """Returns Adam's state, to be changed in place."""

    def state(self) -> dict[str, torch.Tensor]:
        """Returns all that the next step depends on, on the CPU: a copy of nothing that is there already."""
        own = {"silent": self.silent, "count": torch.tensor(self.count)}
        return {name: value.detach().cpu() for name, value in (self.sae.state_dict() | self._moments() | own).items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Goes on from what `state` returned."""
        self.count = int(state["count"])
        with torch.no_grad():
            for name, value in (self.sae.state_dict() | self._moments() | {"silent": self.silent}).items():
                value.copy_(state[name])

    def close(self) -> None:  # noqa: B027
        """Gives threads back, where there are any."""

    def _rate(self) -> float:
        """Returns this step's weight in a running mean over about the last 20th of the run's steps."""
        return max(1 / (self.count + 1), min(1.0, 20 / self.steps))
