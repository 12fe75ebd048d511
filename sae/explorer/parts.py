"""The page's data on disk: small scripts, because a page opened from disk may run scripts but not read files."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae.files import whole


def script(name: str, value: Any) -> str:
    """Returns the text of a script that gives `value` to the page.

    Characters outside ASCII are escaped, so that the file can be read in any encoding. NaN is refused.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return f"parts.take({json.dumps(name)},{text})\n"


def write(folder: Path, name: str, value: Any) -> None:
    """Writes the script `folder`/`name`.js."""
    with whole(folder / f"{name}.js") as part:
        part.write_text(script(name, value))


def pack(values: np.ndarray | Sequence[int], kind: str) -> str:
    """Returns unsigned integers as base64, little-endian; `kind` is u1, u2 or u4 (bytes each).

    Raises:
        ValueError: a value does not fit.
    """
    array = np.asarray(values)
    if array.size and (array.min() < 0 or array.max() > np.iinfo(kind).max):
        raise ValueError(f"values from {array.min()} to {array.max()} do not fit into {kind}")
    return base64.b64encode(array.astype(f"<{kind}").tobytes()).decode()


def numbers(values: Any, digits: int = 3) -> list[float | int | None]:
    """Returns numbers rounded to `digits` significant digits; None where a number is not finite."""
    return [number(value, digits) for value in np.asarray(values, np.float64).tolist()]


def number(value: float, digits: int = 3) -> float | int | None:
    """Returns one number rounded as `numbers` does."""
    if not np.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded
