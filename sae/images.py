"""From a folder of images to a manifest, and from the manifest to pixels as the model sees them."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from sae import labelling
from sae.errors import InputError, plain
from sae.files import Rows, sha256, whole, write_header
from sae.labelling import BESIDE, HELD_OUT, TRAIN
from sae.near_duplicates import THUMBNAIL, near_duplicates

_FORMATS = "jpg jpeg jpe jfif png bmp gif webp avif jp2 j2k tif tiff ppm pgm pnm"
EXTENSIONS = frozenset(f".{name}" for name in _FORMATS.split())
_UNREAD = "heic heif hif jxl svg psd cr2 cr3 nef arw dng orf rw2 raf"  # by Pillow; the manifest lists them as broken
_FOREIGN = frozenset(f".{name}" for name in _UNREAD.split())
_LISTED = EXTENSIONS | _FOREIGN
# What archives, network storage and systems lay beside images: copies, thumbnails, deleted files.
_NOT_IMAGES = frozenset(
    ("__MACOSX", "@eaDir", "@Recycle", "#recycle", "#snapshot", "@Recently-Snapshot", "$RECYCLE.BIN", "lost+found")
)
COLUMNS = ["id", "path", "label", "split", "sha256", "width", "height", "mode", "status", "reason", "group"]
# Pillow goes by the content, whatever the ending. It must not open PostScript, which is a program, and the like.
_OPENED = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "AVIF", "JPEG2000", "TIFF", "PPM")
_WAYS = 100  # paths by which one folder is listed: links that cross would never end
_MOST_PIXELS = 178_956_970  # above this Pillow itself suspects a decompression bomb
_LONGEST = 256  # times its width: the crop would show next to nothing of such a strip
_ORIENTATION = 0x0112
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_UPRIGHT = {number: Image.Transpose[name] for number, name in enumerate(_TURNS.split(), 2)}  # orientation -> way back
_LEFT_OUT: dict[str, Any] = {"sha256": "", "width": 0, "height": 0, "mode": "", "thumbnail": None}
_LEFT_OUT |= {"status": "left_out", "reason": "beyond limits.images"}
_CHUNK = 256  # images in memory at once
MOST_RANKED = 50_000  # images: each takes about 10 kB of a dictionary's measurement


def build_manifest(
    folder: str | Path, labels: str | Path | None = None, held_out: float = 0.2, threads: int = 1
) -> pd.DataFrame:
    """Lists the images of a folder and labels them; see `list_images` and `label`."""
    return label(list_images(folder, labels, held_out, threads), folder, labels)


def list_images(
    folder: str | Path,
    labels: str | Path | None = None,
    held_out: float = 0.2,
    threads: int = 1,
    most: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Lists every image under `folder`, with its status and the reason if it is not used.

    Sub-folders called train and val, test or the like give the split, see `labelling.by_folder`. Otherwise a hash of
    the content decides the split, so that new images never change the split of old ones.

    Args:
        folder: searched at all levels; links are followed; names that begin with a dot are skipped.
        labels: a CSV, see `labelling.by_csv`. Images that it does not list are not used; it may give the split.
        held_out: the share of images that are not used for training, 0..1.
        threads: how many images are read at once.
        most, seed: how many images may be used, see `choose`.

    Returns:
        one row per image file in the order of the paths, the columns of COLUMNS without the label. `status` is
        ok, broken, duplicate, huge, unlisted or left_out; only ok images are used. `reason` explains a status other
        than ok, or the conversion of an ok image that is not plain upright RGB. `group`: the id of the first used image
        that looks the same, see `near_duplicates`; the image's own id if there is none.

    Raises:
        InputError: the folder is missing, empty or has no readable image; the CSV does not fit the folder; a split is
            empty.
    """
    folder = Path(folder).expanduser()
    paths = sorted(image_files(folder))
    if not paths:
        known = " ".join(sorted(EXTENSIONS))
        raise InputError(f"images {folder}: no image in it or below it; known endings: {known}")
    chosen = choose(paths, folder, labels, most, seed)
    parts, looks = [], []
    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(paths), desc="images", unit="image") as progress:
        for first in range(0, len(paths), _CHUNK):
            rows, chunk = [], paths[first : first + _CHUNK]
            found = pool.map(lambda path: _inspect(folder / path) if path in chosen else _LEFT_OUT.copy(), chunk)
            for path, row in zip(chunk, found, strict=True):
                name = path.encode("utf-8", "backslashreplace").decode()
                if name != path:
                    row |= {"status": "broken", "reason": "its name is not UTF-8; rename it"}
                looks.append(row.pop("thumbnail"))
                rows.append({"path": name} | row)
                progress.update()
            parts.append(pd.DataFrame(rows))  # takes less memory than the rows
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "id", np.arange(len(table)))
    table = labelling.by_folder(table)
    if labels is not None:
        table = labelling.by_csv(table, folder, Path(labels).expanduser(), COLUMNS)
    _mark_duplicates(table)

    ok = table["status"] == "ok"
    if not ok.any():
        worst = table.iloc[0]
        raise InputError(
            f"images {folder}: none of the {len(table)} images can be used; "
            f"the first, {worst['path']}, is {worst['status']}: {worst['reason']}"
        )
    by_content = [int(h[:8] or "0", 16) / 2**32 < held_out for h in table["sha256"]]
    table["split"] = table["split"].where(table["split"].notna(), np.where(by_content, HELD_OUT, TRAIN))
    for split in (TRAIN, HELD_OUT):
        if not (ok & (table["split"] == split)).any():
            raise InputError(
                f"images {folder}: no image of {int(ok.sum())} falls into the split {split}; "
                f"add images, change held_out (now {held_out}), or set the split in a labels CSV"
            )
    table["group"] = table["id"]
    thumbnails = np.stack([look for look, used in zip(looks, ok, strict=True) if used])
    table.loc[ok, "group"] = table.loc[ok, "id"].to_numpy()[near_duplicates(thumbnails)]
    text = ["split", "sha256", "mode", "status", "reason"]
    table[text] = table[text].astype("string")
    return table[[column for column in COLUMNS if column != "label"]]


def choose(
    paths: Sequence[str], folder: Path, labels: str | Path | None = None, most: int | None = None, seed: int = 0
) -> set[str]:
    """Returns the images to read: all, or a random choice of `most` by their paths, of those that the CSV lists.

    The choice hardly changes with new images.

    Args:
        paths: of all images, below `folder`.
        labels: see `list_images`.
    """
    if most is None:
        return {*paths}
    names = [path.encode("utf-8", "backslashreplace").decode() for path in paths]
    if labels is not None:
        table = pd.DataFrame({"path": names, "status": "ok", "reason": ""})
        listed = labelling.by_csv(table, folder, Path(labels).expanduser(), COLUMNS)["status"] == "ok"
    else:
        listed = pd.Series(True, range(len(paths)))
    every = zip(names, paths, listed, strict=True)
    order = sorted((hashlib.sha256(f"{seed} {name}".encode()).digest(), path) for name, path, here in every if here)
    return {path for _hash, path in order[:most]}


def label(table: pd.DataFrame, folder: str | Path, labels: str | Path | None = None) -> pd.DataFrame:
    """Returns the manifest: the rows of `list_images` with the label and the attributes of each image.

    An image's label is its sub-folder ("animals/cat"), none for images that lie in `folder` itself.

    Args:
        labels: a CSV, see `labelling.by_csv`. It may give the labels, and gives the attributes.

    Returns:
        the columns of COLUMNS, then the attributes. The reason of a duplicate names the label of the image that is
        used if it is another one.

    Raises:
        InputError: the CSV does not fit the folder.
    """
    found = labelling.by_folder(table.copy())
    if labels is not None:
        found = labelling.by_csv(found, Path(folder).expanduser(), Path(labels).expanduser(), COLUMNS)
    manifest = table.assign(label=found["label"].astype("string"))
    original = used(manifest).drop_duplicates("sha256").set_index("sha256")["label"]
    other = manifest["sha256"].map(original).astype("string").fillna("")
    differs = (manifest["status"] == "duplicate") & (manifest["label"].fillna("") != other)
    manifest.loc[differs, "reason"] += ", which is labelled " + other[differs].replace("", "None")
    return manifest[COLUMNS].join(found[[column for column in found if column not in COLUMNS]])


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Returns a manifest, or a list of images, as `label` and `list_images` made it.

    Raises:
        InputError: the file is damaged, or no manifest; or a path leads out of the folder of images.
    """
    try:
        table = pd.read_parquet(path)
        if table["id"].dtype.kind != "i" or not table["id"].is_unique:
            raise ValueError("its ids are not different whole numbers")
        if lead_out := [p for p in table["path"] if Path(p).is_absolute() or ".." in Path(p).parts]:
            raise ValueError(f"the path {lead_out[0]} leads out of the folder of images")
        first = [column for column in COLUMNS if column in table or column != "label"]
        return table[[*first, *table.columns.drop(first)]]
    except Exception as error:  # of many kinds: pyarrow's, pandas' and those of damaged values
        what = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: cannot be read as a manifest: {what}; delete it and run again") from error


def read_image(path: str | Path) -> Image.Image:
    """Returns the image as a person would see it: upright, first frame, RGB, transparency over white, 8 bit.

    Raises:
        OSError, ValueError, SyntaxError: Pillow cannot read it.
    """
    # Without warnings: the manifest has looked at the file already.
    with warnings.catch_warnings(action="ignore"), Image.open(path, formats=_OPENED) as image:
        return as_seen(image)


def as_seen(image: Image.Image) -> Image.Image:
    """Returns an opened image as `read_image` does."""
    image.load()  # turns a TIFF, and takes its orientation away
    orientation, rgb = _orientation(image), _as_rgb(image)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


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


def used(manifest: pd.DataFrame, split: str | None = None) -> pd.DataFrame:
    """Returns the rows of the used images, of one split or of both, in the order of their ids."""
    chosen = manifest["status"] == "ok"
    if split is not None:
        chosen &= manifest["split"] == split
    return manifest[chosen].sort_values("id")


def sample(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """Returns at most `most` rows, a sample by content that hardly changes with new images and favours no split.

    The hash's first digits decide the split, so the sample uses its last ones.
    """
    return rows.loc[rows["sha256"].str[32:].sort_values(kind="stable").index[:most]].sort_values("id")


def ranked(manifest: pd.DataFrame, always: Sequence[int] | np.ndarray = ()) -> pd.DataFrame:
    """Returns the rows of the ranked images: all used ones, or a sample by content if they are too many.

    Args:
        always: ids of images that are always included.
    """
    rows = used(manifest)
    return rows[rows["id"].isin(sample(rows, MOST_RANKED)["id"]) | rows["id"].isin(always)]


def summary(manifest: pd.DataFrame) -> str:
    """Returns a text about a manifest: the number of used images, and the reasons for the others."""
    counts = manifest["status"].value_counts()
    splits = used(manifest)["split"].value_counts()
    lines = [
        f"{len(manifest)} images: {', '.join(f'{n} {status}' for status, n in counts.items())}; "
        f"{splits.get(TRAIN, 0)} train, {splits.get(HELD_OUT, 0)} held out; "
        f"{used(manifest)['label'].nunique()} classes"
    ]
    if beside := int((used(manifest)["reason"].str.contains(BESIDE)).sum()):
        lines.append(f"  {beside} lie {BESIDE}")
    bad = manifest[~manifest["status"].isin(["ok", "unlisted", "left_out"])]
    lines += [plain(f"  {row.path}: {row.status}: {row.reason}") for row in bad.head(20).itertuples()]
    if len(bad) > 20:
        lines.append(f"  and {len(bad) - 20} more, see the manifest's column `reason`")
    return "\n".join(lines)


def shard(manifest: pd.DataFrame, index: int, shards: int) -> pd.DataFrame:
    """Returns the rows of the used images that belong to shard `index` of `shards`, in the order of their ids.

    Raises:
        InputError: there are more shards than images.
    """
    rows = used(manifest)
    if shards > len(rows):
        raise InputError(f"shards {shards}: there are only {len(rows)} images; use fewer shards")
    bounds = np.linspace(0, len(rows), shards + 1).astype(int)
    return rows.iloc[bounds[index] : bounds[index + 1]]


def pictures(manifest: pd.DataFrame, shards: Sequence[str | Path], ids: Sequence[int]) -> dict[int, np.ndarray]:
    """Returns image id -> uint8 [height, width, 3] as the model saw it, from the pixel shards in order."""
    found: dict[int, np.ndarray] = {}
    wanted = set(ids)
    for index, path in enumerate(shards):
        here = shard(manifest, index, len(shards))["id"]
        places = np.flatnonzero(here.isin(wanted))
        if len(places):
            found |= dict(zip(here.iloc[places].tolist(), Rows(path).read(places), strict=True))
    return found


def describe(label: str) -> str:
    """Returns ImageNet's first word for a synset ("n02123045" -> "tabby"), any other label as it is."""
    synset = label.split("/")[-1]
    if not re.fullmatch(r"n\d{8}", synset):
        return label
    return _synsets().get(synset, label).split(",")[0]


@cache
def _synsets() -> dict[str, str]:
    # Read from timm's files: the import of timm takes seconds, and jobs without a ViT need these words too.
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.origin is not None
    lines = (Path(spec.origin).parent / "data/_info/imagenet_synset_to_lemma.txt").read_text().splitlines()
    return dict(line.split("\t") for line in lines)


def image_files(folder: Path) -> Iterator[str]:
    """Yields the paths of the image files, relative to the folder, with forward slashes.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"images {folder}: no such folder; give a folder of images, or `concepts`")
    own = {os.path.realpath(name) for name in ("results", ".snakemake")} - {os.path.realpath(folder)}
    ways: Counter[str] = Counter()
    for place, subfolders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        real, around = os.path.realpath(place), Path(place).parents[: len(Path(place).relative_to(folder).parts)]
        ways[real] += 1
        back_up = any(os.path.realpath(above) == real for above in around)
        if real in own or back_up or ways[real] > _WAYS:
            subfolders.clear()
            continue
        subfolders[:] = [s for s in subfolders if not s.startswith(".") and s not in _NOT_IMAGES]
        for name in names:
            if Path(name).suffix.lower() in _LISTED and not name.startswith("."):
                yield (Path(place) / name).relative_to(folder).as_posix()


def _unreadable(error: OSError) -> None:
    raise InputError(
        f"images {error.filename}: the folder cannot be read: {error.strerror}; correct or remove it"
    ) from error


def _inspect(path: Path) -> dict[str, Any]:
    """Returns the manifest's values for one file; a broken file raises no error."""
    row = _LEFT_OUT | {"status": "ok", "reason": ""}
    if path.suffix.lower() in _FOREIGN:
        return row | {"status": "broken", "reason": f"{path.suffix} files cannot be read; save it as PNG or JPEG"}
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would never end
            return row | {"status": "broken", "reason": "not a file"}
        content = path.read_bytes()
        if not content:
            return row | {"status": "broken", "reason": "the file is empty"}
        row["sha256"] = hashlib.sha256(content).hexdigest()
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=_OPENED) as image:
            row |= {"width": image.width, "height": image.height, "mode": image.mode}
            if image.width * image.height > _MOST_PIXELS:
                raise Image.DecompressionBombError
            long, short = max(image.size), min(image.size)
            if long > _LONGEST * short:
                row |= {"status": "huge", "reason": f"{long // short} times as long as wide; crop it to use it"}
                return row
            whole_size = image.size
            image.draft("RGB", (64, 64))  # JPEG: every block is still read, few pixels are computed
            if image.format != "TIFF":  # a PNG's EXIF may lie behind its pixels: looking for it hides their damage
                image.load()
            reasons = _peculiarities(image)
            image.load()  # turns a TIFF, and takes its orientation away
            if _orientation(image) >= 5:  # a quarter turn: width and height change places
                row |= dict(zip(("height", "width"), whole_size, strict=True))
            row["thumbnail"] = np.asarray(_as_rgb(image).resize(THUMBNAIL, Image.Resampling.BOX))
        row["reason"] = "; ".join(reasons)
    except Image.DecompressionBombError:
        limit = _MOST_PIXELS // 1_000_000
        row |= {"status": "huge", "reason": f"over {limit} megapixels; make it smaller to use it"}
    except MemoryError:
        raise  # of the machine, not of the file
    except UnidentifiedImageError:
        row |= {"status": "broken", "reason": "not an image of a known format"}
    except Exception as error:
        # Pillow's plugins raise all kinds of errors (SyntaxError, struct.error, ZeroDivisionError, …): each means that
        # this file is broken, and the other files can still be read.
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__  # the first without the path
        row |= {"status": "broken", "reason": plain(what)}
    return row


def _peculiarities(image: Image.Image) -> list[str]:
    """Returns a description of the conversion by `read_image`; empty for a plain upright RGB image."""
    reasons = []
    orientation = _orientation(image)
    if (frames := getattr(image, "n_frames", 1)) > 1:
        reasons.append(f"animated: the first of {frames} frames is used")
    if orientation in _UPRIGHT:
        reasons.append(f"turned upright by its EXIF orientation {orientation}")
    if image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F")):
        reasons.append("greyscale: repeated over the three channels")
    elif image.mode == "P":
        reasons.append("palette: converted to RGB")
    elif image.mode not in ("RGB", "RGBA"):
        reasons.append(f"{image.mode}: converted to RGB")
    if image.has_transparency_data:
        reasons.append("transparent: laid over white")
    return reasons


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 where the EXIF cannot be read, as image viewers do."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # of many kinds, as in `_inspect`
        return 1
    value = value[0] if isinstance(value, bytes | tuple) and len(value) == 1 else value
    return int(value) if value in _UPRIGHT else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Returns a greyscale image of more than 8 bits with 8; Pillow's own conversion clips at 255 instead of scaling.

    A TIFF may hold fewer bits than it has room for: the smallest of 8, 12 and 16 bits that holds its values counts.
    """
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 2**16:
        raise ValueError(f"pixels from {low} to {high}: their range is unknown; save it with 8 or 16 bits")
    bits = next(bits for bits in (8, 12, 16) if high < 2**bits) if image.format == "TIFF" else 16
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    elif image.mode == "F":
        raise ValueError("floating-point pixels: their range is unknown; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _mark_duplicates(table: pd.DataFrame) -> None:
    first: dict[str, object] = {}
    for index, digest in table.loc[table["status"] == "ok", "sha256"].items():
        original = first.setdefault(digest, index)
        if index != original:
            table.loc[index, ["status", "reason"]] = ["duplicate", f"same content as {table.at[original, 'path']}"]
