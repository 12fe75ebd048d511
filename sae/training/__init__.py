"""Training: the config, the loop, and two implementations of a step."""

from sae.training.config import Source, TrainConfig
from sae.training.loop import default_lr, train

__all__ = ["Source", "TrainConfig", "default_lr", "train"]
