"""Sparse autoencoders on the layers of a Vision Transformer: train them and study their latents."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae.autoencoder import SparseAutoencoder as SparseAutoencoder
    from sae.errors import InputError as InputError
    from sae.exchange import export as export
    from sae.exchange import load as load
    from sae.extraction import activations as activations
    from sae.latent_codes import codes as codes
    from sae.new_image import look as look
    from sae.store import Activations as Activations
    from sae.training import Source as Source
    from sae.training import TrainConfig as TrainConfig
    from sae.training import train as train
    from sae.vit import load as load_vit  # noqa: F401 -- in __all__
    from sae.vit import splice as splice

_HOME = {
    "Activations": "store",
    "InputError": "errors",
    "Source": "training",
    "SparseAutoencoder": "autoencoder",
    "TrainConfig": "training",
    "activations": "extraction",
    "codes": "latent_codes",
    "export": "exchange",
    "load": "exchange",
    "load_vit": "vit",
    "look": "new_image",
    "splice": "vit",
    "train": "training",
}
_OWN_NAME = {"load_vit": "load"}  # in its module
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    # On demand: a job that draws a figure need not wait seconds for the import of torch and timm.
    if name not in _HOME:
        raise AttributeError(f"module 'sae' has no attribute {name!r}")
    return getattr(import_module(f"sae.{_HOME[name]}"), _OWN_NAME.get(name, name))
