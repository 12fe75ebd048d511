"""Files that are complete or absent, that carry a checksum, and that record their provenance.

A JSON or safetensors file of this project begins with its own checksum: the SHA-256 of the whole file, in which the 64
digits of the checksum count as zeros. `check` compares it, and so does everything that reads these files.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sae.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

_ZEROS = "0" * 64
_CHECKSUM = re.compile(rb'"checksum": "(?:\\")?([0-9a-f]{64})')
_TYPES = {  # of NumPy -> of safetensors
    **{"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16"},
    **{"int8": "I8", "uint8": "U8", "bool": "BOOL"},
}
# Files that were compared with a receipt already, and that readers need not hash again; filled by the job that runs.
trusted: set[Path] = set()


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


class Rows:
    """The array of an .npy file; each read takes only the rows asked for.

    A memory map would count all that it ever read as memory of the process, which clusters limit.

    Attributes:
        shape: [n, ...].
        dtype: of its numbers.
    """

    def __init__(self, path: str | Path):
        import numpy as np  # here and below: a job without tables or arrays should not wait for them

        found = np.load(path, mmap_mode="r")
        if not found.flags.c_contiguous:
            raise ValueError("its rows are not stored one after the other")
        self._path, self._begin = Path(path), found.offset
        self.shape, self.dtype = found.shape, found.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: np.ndarray | Sequence[int], part: slice = slice(None)) -> np.ndarray:
        """Returns these rows, and of the dimension after the first only `part`, which skips nothing inside.

        Raises:
            InputError: the file has become shorter.
        """
        import numpy as np

        rows, inner = np.asarray(rows, np.int64), range(*part.indices(self.shape[1]))
        out = np.empty((len(rows), len(inner), *self.shape[2:]), self.dtype)
        size = out[:1].nbytes // len(inner)
        # Whole rows that follow each other are read together.
        ends = np.flatnonzero(np.diff(rows) != 1) + 1 if len(inner) == self.shape[1] else np.arange(1, len(rows))
        with self._path.open("rb", buffering=0) as file:
            for start, end in pairwise([0, *ends.tolist(), len(rows)] if len(rows) else []):
                left = out[start:end].data.cast("B")
                file.seek(self._begin + (int(rows[start]) * self.shape[1] + inner.start) * size)
                while left:
                    if not (count := file.readinto(left)):
                        raise damaged(self._path)
                    left = left[count:]
        return out


def write_header(file: BinaryIO, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> bytes:
    """Begins an .npy file whose numbers follow in order; returns the bytes written."""
    import numpy as np

    head = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, facts)
    file.write(head.getvalue())
    return head.getvalue()


def sha256(path: str | Path) -> str:
    """Returns the file's SHA-256 as 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(path: str | Path) -> InputError:
    """Returns the error for a file whose content is not what was written."""
    return InputError(f"{path}: the file is damaged: its content does not match its checksum; delete it and run again")


def check(path: str | Path, expected: str | None = None) -> None:
    """Compares a file with its checksum, unless it is trusted.

    Args:
        expected: its SHA-256; None: a JSON or safetensors file of this project, which carries its checksum.

    Raises:
        InputError: the file is damaged, or carries no checksum.
    """
    if Path(path) in trusted:
        return
    if expected is not None:
        if sha256(path) != expected:
            raise damaged(path)
        return
    with Path(path).open("rb") as file:
        head = file.read(256)
        found = _CHECKSUM.search(head)
        if not found:
            raise damaged(path)
        digest = hashlib.sha256(head[: found.start(1)] + _ZEROS.encode() + head[found.end(1) :])
        hashlib.file_digest(file, lambda: digest)
    if digest.hexdigest().encode() != found[1]:
        raise damaged(path)


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Writes JSON with a checksum as its first key.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps({"checksum": _ZEROS} | content, indent=2, allow_nan=False) + "\n"
    with whole(path) as part:
        part.write_text(text.replace(_ZEROS, hashlib.sha256(text.encode()).hexdigest(), 1))


def read_json(path: str | Path) -> dict[str, Any]:
    """Returns the content of a JSON file of `write_json`, without the checksum.

    Raises:
        InputError: the file is damaged.
    """
    with _damage_of(path):
        check(path)
        content = json.loads(Path(path).read_text())
        del content["checksum"]
        return content


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], told: Mapping[str, Any] | None = None) -> None:
    """Writes safetensors array by array: the library's own function holds a copy of all of them in memory.

    The same content gives the same bytes.

    Args:
        told: the metadata, to be written as JSON texts. A checksum is added.
    """
    import numpy as np

    told = {"checksum": _ZEROS} | dict(told or {})
    header: dict[str, Any] = {"__metadata__": {name: json.dumps(value) for name, value in told.items()}}
    end = 0
    arrays = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))  # so all are aligned
    for name, array in arrays.items():
        offsets = [end, end + array.nbytes]
        header[name] = {"dtype": _TYPES[array.dtype.name], "shape": array.shape, "data_offsets": offsets}
        end += array.nbytes
    text = json.dumps(header).encode()
    text = (len(text) + -len(text) % 8).to_bytes(8, "little") + text + b" " * (-len(text) % 8)
    digest = hashlib.sha256(text)
    with whole(path) as part, part.open("wb") as file:
        file.write(text)
        for array in arrays.values():
            block = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            digest.update(block.data)
            block.tofile(file)
        file.seek(text.index(_ZEROS.encode()))
        file.write(digest.hexdigest().encode())


def read_arrays(path: str | Path, mapped: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays and the metadata of a file of `write_arrays`.

    Args:
        mapped: return memory maps: a job that looks at a few images reads a few pages.

    Raises:
        InputError: the file is damaged.
    """
    import numpy as np
    from safetensors import safe_open

    with _damage_of(path):
        check(path)
        with safe_open(path, "np"):
            pass  # the library's checks of the header: sizes, places and types
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        told = {name: json.loads(text) for name, text in header.pop("__metadata__").items()}
        names, arrays = {short: name for name, short in _TYPES.items()}, {}
        for name, entry in header.items():
            dtype, shape, start = names[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
            full = np.prod(shape) > 0
            array = np.memmap(path, dtype, "r", start, shape) if full else np.empty(shape, dtype)
            arrays[name] = array if mapped else np.array(array)
        return arrays, told


@contextmanager
def _damage_of(path: str | Path) -> Iterator[None]:
    """Turns the errors of readers into one of ours; a file that is missing keeps its error."""
    try:
        yield
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:  # of many kinds: each means that these are other bytes than were written
        raise InputError(f"{path}: the file is damaged: {error}; delete it and run again") from error


def write_table(path: str | Path, table: pd.DataFrame, provenance: dict[str, Any] | None = None) -> None:
    """Writes Parquet with checksums of its pages; `provenance` goes into its metadata, as JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = dict(arrow.schema.metadata or {}) | {b"provenance": json.dumps(provenance).encode()}
    with whole(path) as part:
        pq.write_table(arrow.replace_schema_metadata(metadata), part, write_page_checksum=True)


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Returns the provenance of a Parquet table of this project."""
    import pyarrow.parquet as pq

    return json.loads(pq.read_schema(path).metadata[b"provenance"])


def read_points(paths: Sequence[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Reads tables of grid points, or these columns, and adds layer, k, method and seed from their paths."""
    import pandas as pd

    point = {"layer": int, "k": int, "method": str, "seed": int}
    chosen = None if columns is None else [*columns, *point]
    return pd.read_parquet(list(paths), columns=chosen, partitioning="hive").astype(point)


def ahead(items: Iterator[Any], depth: int = 4) -> Iterator[Any]:
    """Yields the items; a thread makes up to `depth` of them in advance.

    Raises:
        BaseException: the error that making an item raised.
    """
    thread, end = ThreadPoolExecutor(1), object()
    line = deque(thread.submit(next, items, end) for _ in range(depth))
    try:
        while (item := line.popleft().result()) is not end:
            line.append(thread.submit(next, items, end))
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
