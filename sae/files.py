"""Files that are complete or absent, and that record their provenance."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name (a file or a folder) beside `path`, renamed to it on success, removed on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


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
