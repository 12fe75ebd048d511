"""The configuration of a training, and the source of its activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sae.autoencoder import INPUTS, METHODS
from sae.errors import InputError
from sae.store import Activations, moments, scale

# The trained baselines: topk with random weights that are not trained, or hardly. Source: arXiv 2602.14111.
BASELINES: dict[str, dict[str, Any]] = {
    "frozen": {"decoder": "frozen"},
    "soft_frozen": {"decoder": "held"},
    "frozen_encoder": {"encoder": "frozen", "decoder": "start", "auxk": 0.0},
}
# Of the methods that are topk with settings of their own.
_SETTINGS: dict[str, dict[str, Any]] = {"archetypal": {"start": "kmeans", "decoder": "held"}, **BASELINES}
_CHOICES = {
    "method": (*METHODS, *BASELINES),
    "input": INPUTS,
    "decoder": ("unit_norm", "start", "held", "frozen"),
    "encoder": ("trained", "frozen"),
    "start": ("random", "tokens", "kmeans", "scaled"),
    "precision": ("auto", "fp32", "bf16", "int8"),
}


@dataclass(frozen=True)
class TrainConfig:
    """How one SAE is trained: `sae` and `training` of config.yaml, at one grid point. The defaults are the field's.

    Attributes:
        k: Latents active per token; on average for batchtopk, relu and jumprelu.
        latents: F, the size of the dictionary.
        method: One of METHODS, or of BASELINES, which set the fields named there. archetypal sets start kmeans and
            decoder held: every row stays near the centre of a cluster of tokens.
        input: standardised, or layernorm: a trained LayerNorm in front. See `SparseAutoencoder`.
        decoder: unit_norm: rows have norm 1 after every step. start: rows have norm 1 at the start only, and the
            encoder starts from the rows before they were normalised. held: as unit_norm, and every row keeps a cosine
            of at least 0.8 with its start. frozen: rows are never trained.
        encoder: trained, or frozen: its random weights stay as they are, and its biases 0 (b_dec is trained).
        start: Initial decoder rows; the encoder starts as a copy of them. random: random directions. tokens:
            directions from the mean to random tokens. kmeans: directions from the mean to the centres of clusters of
            tokens. scaled: random directions, the encoder scaled so that the reconstruction of the first tokens has
            the right size.
        epochs: Passes over all tokens.
        batch: Tokens per step (images, with `whole_images`).
        whole_images: Batches keep the tokens of an image together.
        precision: Of the matrix products: fp32; bf16; int8: bf16, but the encoder's product uses 8-bit integers (the
            k-sparse methods on a CPU); auto: the fastest on the device. Weights, sums and Adam's state stay fp32.
        deterministic: On a GPU, use only operations with bitwise identical results in every run, which is slower.
        lr: Adam's learning rate; None: see `training.default_lr`.
        betas: Adam's β₁ and β₂.
        lr_per_epoch: Factor of the learning rate after each epoch.
        warmup: Share of the steps over which the learning rate rises from 0.
        decay: Share of the steps over which the learning rate falls to 0, at the end.
        clip: Largest norm of the gradient; None: no limit.
        auxk: Weight of the auxiliary loss that revives dead latents; 0: none.
        dead_after: A latent is dead after it was silent for this share of the run's tokens.
        nested: Share of the run in which the prefixes of a Matryoshka reconstruct, each by itself.

    Raises:
        InputError: A value is unknown, or values contradict each other.
    """

    k: int
    latents: int
    method: str = "topk"
    input: str = "standardised"
    decoder: str = "unit_norm"
    encoder: str = "trained"
    start: str = "random"
    epochs: int = 1
    batch: int = 4096
    whole_images: bool = False
    precision: str = "auto"
    deterministic: bool = False
    lr: float | None = None
    betas: tuple[float, float] = (0.7, 0.99)
    lr_per_epoch: float = 1.0
    warmup: float = 0.05
    decay: float = 0.2
    clip: float | None = 1.0
    auxk: float = 1 / 32
    dead_after: float = 0.01
    nested: float = 0.5

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} {getattr(self, name)}: must be one of {', '.join(known)}")
        if not 1 <= self.k <= self.latents:
            raise InputError(f"k {self.k}: must lie between 1 and the number of latents, {self.latents}")
        if self.epochs < 1 or self.batch < 1:
            raise InputError(f"epochs {self.epochs}, batch {self.batch}: both must be at least 1")
        for name, value in _SETTINGS.get(self.method, {}).items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Source:
    """The source of activations.

    Attributes:
        layer: The ViT's block that gave them; None: unknown.
        tokens: patches, class or all.
        statistics: Of the train set: mean [d], variance [d] and scale, as in statistics.json. None: computed from
            the activations.
    """

    layer: int | None = None
    tokens: str = "patches"
    statistics: Mapping[str, Any] | None = None

    def measured(self, x: Activations) -> Source:
        """Returns this source with the statistics of `x` if it has none.

        Raises:
            InputError: An activation is not finite or too large, or all tokens are the same.
        """
        if self.statistics is not None:
            return self
        mean, variance = moments(x)
        return replace(self, statistics={"mean": mean, "variance": variance, "scale": scale(mean, variance)})

    @property
    def mean(self) -> np.ndarray:
        """The train set's mean vector, float64 [d]."""
        return np.asarray(self._known["mean"], np.float64)

    @property
    def variance(self) -> np.ndarray:
        """The train set's variance of each dimension, float64 [d]."""
        return np.asarray(self._known["variance"], np.float64)

    @property
    def scale(self) -> float:
        """The factor after which E‖x̃‖² = d."""
        return float(self._known["scale"])

    @property
    def _known(self) -> Mapping[str, Any]:
        assert self.statistics is not None  # see `measured`
        return self.statistics
