"""Imports timm in a third of the time: `from sae.light_timm import timm`.

timm imports torchvision for its image transforms, and with it all of torchvision's models, operators and data sets.
These import torch's compiler, and so does one of timm's models: 5 seconds for parts that nobody here calls. While this
module imports timm, stand-ins take their places. They are gone afterwards: a later `import torchvision` gets the whole
package. timm loses nothing, as a stand-in's functions import the real ones when they are called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

_PACKAGES = ("torchvision", "torchvision.models", "torchvision.ops")  # without what their __init__.py imports
_LATER = ("torchvision.datasets", "torchvision.models.feature_extraction")
# Whole packages and modules that the real torchvision may share with timm, once it is imported.
_SHARED = ("torchvision.transforms", "torchvision.utils")


class _Later(ModuleType):
    """A module of functions that import the real module of this name when they are called."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: getattr(import_module(self.__name__), name)(*args, **kwargs)


def _disable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for torch.compiler.disable, a decorator that imports the compiler at once."""

    @wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        return torch.compiler.disable(function)(*args, **kwargs)

    return call


@contextmanager
def _stand_ins() -> Iterator[None]:
    before = set(sys.modules)
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed")
    root = Path(spec.origin).parent
    for name in _PACKAGES:
        package = ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    sys.modules["torchvision"].__spec__ = spec  # for those who ask whether torchvision is there
    for name in _LATER:
        sys.modules[name] = _Later(name)
    disable = torch.compiler.disable
    torch.compiler.disable = _disable  # type: ignore[assignment]  # for the time of the import
    try:
        yield
    finally:
        torch.compiler.disable = disable
        for name in set(sys.modules) - before:
            if name.startswith("torchvision") and not name.startswith(_SHARED):
                del sys.modules[name]


def _load() -> ModuleType:
    for name in ("timm.data", "timm.layers", "timm.models"):
        import_module(name)
    return sys.modules["timm"]


def _load_light() -> ModuleType:
    if "timm" in sys.modules or "torchvision" in sys.modules:  # nothing is left to save
        return _load()
    try:
        with _stand_ins():
            return _load()
    except Exception:  # other versions may use more of torchvision while they are imported
        for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]
        return _load()


if TYPE_CHECKING:
    import timm
else:
    timm = _load_light()
