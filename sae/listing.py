"""Hashes of the user's files as they are now, by content: a touched or moved file is the same file.

Snakemake compares them with those of the last run when it plans. Contents are read once and remembered with the sizes
and times of the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from sae.errors import InputError
from sae.files import sha256, whole
from sae.images import labelling
from sae.images.manifest import choose
from sae.images.reading import image_files

# Of an SAE's folder, of this project or another library, see `exchange.load`.
SAE_FILES = ("cfg.json", "sae.json", "sae.pt", "sae.safetensors", "sae_weights.safetensors")


def listing(
    folder: str | Path, labels: str | Path | None, memory: str | Path, most: int | None = None, seed: int = 0
) -> dict[str, str]:
    """Returns hashes of a folder of images and its labels CSV, by the contents and the paths below the folder.

    Args:
        folder: see `images.list_images`; also `labels`, `most` and `seed`.
        memory: a folder for the hashes of the contents.

    Returns:
        `images`: of the contents, which images are used, and their splits; `labels`: also of classes and attributes.

    Raises:
        InputError: the folder or the CSV is missing, or the CSV cannot be read.
    """
    folder = Path(folder).expanduser()
    paths = sorted(image_files(folder))
    listed, splits, text = None, None, ""
    if labels is not None:
        labels = Path(labels).expanduser()
        if not labels.is_file():
            raise InputError(f"labels {labels}: no such file; correct the path or remove the key")
        table = labelling.read_csv(labels)
        listed, text = sorted(table["path"]), sha256(labels)
        splits = sorted(zip(table["path"], table["split"], strict=True)) if "split" in table else None
    chosen = choose(paths, folder, labels, most, seed)
    contents = _contents(folder, [path for path in paths if path in chosen], Path(memory))
    return {"images": _hash(contents, listed, splits), "labels": _hash(contents, text)}


def weights(path: str | Path, memory: str | Path) -> str:
    """Returns a hash of a file of weights, by its content.

    Raises:
        InputError: there is no such file.
    """
    missing = f"checkpoint {path}: no such file; give a .safetensors or .pth file of weights, or null"
    return _of_file(path, memory, missing)


def sae(path: str | Path, memory: str | Path) -> str:
    """Returns a hash of the files of an SAE, a folder or one file, by their contents.

    Raises:
        InputError: there is no such folder or file.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return _of_file(path, memory, f"imported SAE {path}: no such file or folder; correct the key imported")
    return _hash(_contents(path, [name for name in SAE_FILES if (path / name).is_file()], Path(memory)))


def image(path: str | Path, memory: str | Path) -> str:
    """Returns a hash of an image outside the experiment, by its content.

    Raises:
        InputError: there is no such file.
    """
    return _of_file(path, memory, f"image {path}: no such file")


def _of_file(path: str | Path, memory: str | Path, missing: str) -> str:
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(missing)
    return _contents(path, [""], Path(memory))[0][1]


def _contents(folder: Path, paths: list[str], memory: Path) -> list[tuple[str, str]]:
    """Returns each path with the hash of its file's content; empty for a file that cannot be read."""
    place = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:12]
    memory = memory / f"{place}.json"
    known: dict[str, list] = {}
    with suppress(OSError, ValueError):
        known = json.loads(memory.read_text())
    states = {path: _state(folder / path) for path in paths}
    old = {p: entry[1] for p, entry in known.items() if entry[0] == states.get(p)}
    new = [path for path in paths if path not in old and states[path] is not None]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read = tqdm(pool.map(lambda path: _content(folder / path), new), "images", len(new), unit="image", delay=5)
        found = {path: content for path, content in zip(new, read, strict=True) if content}
    if found or len(old) < len(known):
        entries = {path: [states[path], content] for path, content in (old | found).items()}
        with suppress(OSError), whole(memory) as part:
            part.write_text(json.dumps(entries))
    return [(path, old.get(path) or found.get(path, "")) for path in paths]


def _state(path: Path) -> list[int] | None:
    """Returns numbers that change when a file is written; None without a file, such as a broken link or a device."""
    try:
        found = path.stat()
    except OSError:
        return None
    return None if not stat.S_ISREG(found.st_mode) else [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _content(path: Path) -> str:
    with suppress(OSError):
        return sha256(path)
    return ""


def _hash(*values: object) -> str:
    digest = hashlib.sha256()
    for value in values:
        for part in value if isinstance(value, Iterable) and not isinstance(value, str) else [value]:
            digest.update(repr(part).encode("utf-8", "backslashreplace"))
        digest.update(b"\n")
    return digest.hexdigest()[:12]
