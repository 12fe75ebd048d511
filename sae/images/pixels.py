"""Images as the model sees them, before normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from sae.errors import InputError
from sae.files import Rows, sha256, whole, write_header
from sae.images.manifest import shard
from sae.images.reading import read_image

_CHUNK = 256  # images in memory at once


def decode(
    manifest: pd.DataFrame,
    folder: str | Path,
    transform: Callable[[Image.Image], np.ndarray],
    out: Path,
    threads: int = 1,
) -> None:
    """Decodes the images of `manifest` once and writes them as the model sees them, before normalisation.

    Args:
        transform: image -> uint8 [3, height, width], see `vit.pixel_transform`.
        out: a .npy file, uint8 [images, height, width, 3], in the order of `manifest`.

    Raises:
        InputError: an image has changed since it was listed.
    """
    folder = Path(folder).expanduser()

    def one(row: tuple[str, str]) -> np.ndarray:
        path, digest = folder / row[0], row[1]
        if not path.is_file() or sha256(path) != digest:
            raise InputError(f"image {path}: it has changed since the images were listed; run the same command again")
        return transform(read_image(path)).transpose(1, 2, 0)

    rows = list(zip(manifest["path"], manifest["sha256"], strict=True))
    shape = one(rows[0]).shape
    with whole(out) as part, part.open("wb") as file, ThreadPoolExecutor(threads) as pool:
        write_header(file, np.uint8, (len(rows), *shape))
        with tqdm(total=len(rows), desc="pixels", unit="image") as progress:
            for first in range(0, len(rows), _CHUNK):
                for image in pool.map(one, rows[first : first + _CHUNK]):
                    file.write(np.ascontiguousarray(image).data)
                    progress.update()


def read_pixels(manifest: pd.DataFrame, shards: Sequence[str | Path], ids: Sequence[int]) -> dict[int, np.ndarray]:
    """Returns image id -> uint8 [height, width, 3] as the model saw it, from the pixel shards in order."""
    found: dict[int, np.ndarray] = {}
    wanted = set(ids)
    for index, path in enumerate(shards):
        here = shard(manifest, index, len(shards))["id"]
        places = np.flatnonzero(here.isin(wanted))
        if len(places):
            found |= dict(zip(here.iloc[places].tolist(), Rows(path).read(places), strict=True))
    return found
