"""Sparse autoencoders on the layers of a Vision Transformer: train them, and see what each latent responds to."""

from importlib import import_module

_HOME = {
    "Activations": "activations",
    "InputError": "errors",
    "Source": "training",
    "SparseAutoencoder": "autoencoder",
    "TrainConfig": "training",
    "codes": "latent_codes",
    "load": "autoencoder",
    "splice": "vit",
    "train": "training",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    # On demand: drawing a figure should not wait seconds for torch and timm to be imported.
    if name not in _HOME:
        raise AttributeError(f"module 'sae' has no attribute {name!r}")
    return getattr(import_module(f"sae.{_HOME[name]}"), name)
