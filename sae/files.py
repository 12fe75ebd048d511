"""Files that are complete or absent, and that record their provenance."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path of the same name, for a file or a folder, that replaces `path` on success.

    So `path` is complete or absent, also after `kill -9` or a power cut: the content is on the disk before it gets the
    name. What an earlier writer of `path` left behind when it was killed is removed.

    Raises:
        OSError: the disk is full or the like; its `filename` is `path`, even where the system does not tell it.
    """
    path = Path(path)
    # A folder around it holds whatever libraries write beside a file before they rename it, as safetensors does.
    folder = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary = folder / path.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            shutil.rmtree(left, ignore_errors=True)
        folder.mkdir()
        yield temporary
        if temporary.is_dir():
            os.sync()  # faster than file by file
            if path.exists():
                path.rename(folder / f"{path.name}.old")
        else:
            temporary.chmod(folder.stat().st_mode & 0o666)  # safetensors lets nobody else read its files
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(folder)):
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def located(path: str | Path) -> Iterator[None]:
    """Adds `path` to an OSError that names no file: a full disk is reported without one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def new_array(path: str | Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Returns a new .npy file as a memory map, to be filled.

    Raises:
        OSError: the disk has too little room for all of it. Without this reservation, the kernel would end the process
            by a signal (SIGBUS) when it writes to the map.
    """
    from numpy.lib.format import open_memmap  # a job without arrays should not wait for it

    array = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with Path(path).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, Path(path).stat().st_size)
    return array


def sha256(path: str | Path) -> str:
    """Returns the file's SHA-256 as 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Writes JSON.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Returns the content of a JSON file."""
    return json.loads(Path(path).read_text())


def write_table(path: str | Path, table: pd.DataFrame, provenance: dict[str, Any] | None = None) -> None:
    """Writes Parquet; `provenance` goes into the schema's metadata, under the key `provenance`, as JSON."""
    import pyarrow as pa  # here and below: a job without tables should not wait for them
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = dict(arrow.schema.metadata or {}) | {b"provenance": json.dumps(provenance).encode()}
    with whole(path) as part:
        pq.write_table(arrow.replace_schema_metadata(metadata), part)


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Returns the provenance of a Parquet table of this project."""
    import pyarrow.parquet as pq

    return json.loads(pq.read_schema(path).metadata[b"provenance"])


def read_points(paths: Sequence[str]) -> pd.DataFrame:
    """Reads tables of grid points and adds layer, k, method and seed from their paths."""
    import pandas as pd

    table = pd.read_parquet(list(paths), partitioning="hive")
    return table.astype({"layer": int, "k": int, "method": str, "seed": int})
