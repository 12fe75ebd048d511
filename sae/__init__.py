"""Sparse autoencoders on the layers of a Vision Transformer: train them and study their latents."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae.activations import Activations as Activations
    from sae.autoencoder import SparseAutoencoder as SparseAutoencoder
    from sae.autoencoder import load as load
    from sae.errors import InputError as InputError
    from sae.latent_codes import codes as codes
    from sae.new_image import look as look
    from sae.training import Source as Source
    from sae.training import TrainConfig as TrainConfig
    from sae.training import train as train
    from sae.vit import splice as splice

_HOME = {
    "Activations": "activations",
    "InputError": "errors",
    "Source": "training",
    "SparseAutoencoder": "autoencoder",
    "TrainConfig": "training",
    "codes": "latent_codes",
    "load": "autoencoder",
    "look": "new_image",
    "splice": "vit",
    "train": "training",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    # On demand: a job that draws a figure need not wait seconds for the import of torch and timm.
    if name not in _HOME:
        raise AttributeError(f"module 'sae' has no attribute {name!r}")
    return getattr(import_module(f"sae.{_HOME[name]}"), name)
