"""Training: the loop, the settings, and two ways to do one step."""

from sae.training.loop import default_lr, train
from sae.training.step import Recipe

__all__ = ["Recipe", "default_lr", "train"]
