"""Training: the config, the loop, and two ways to do one step."""

from sae.training.config import Source, TrainConfig
from sae.training.loop import default_lr, train

__all__ = ["Source", "TrainConfig", "default_lr", "train"]
