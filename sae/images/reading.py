"""Image files: where they lie, what is wrong with them, and what a person sees in them."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from sae.errors import InputError, plain
from sae.images.near_duplicates import THUMBNAIL

_FORMATS = "jpg jpeg jpe jfif png bmp gif webp avif jp2 j2k tif tiff ppm pgm pnm"
EXTENSIONS = frozenset(f".{name}" for name in _FORMATS.split())
_UNREAD = "heic heif hif jxl svg psd cr2 cr3 nef arw dng orf rw2 raf"  # by Pillow; the manifest lists them as broken
_FOREIGN = frozenset(f".{name}" for name in _UNREAD.split())
_LISTED = EXTENSIONS | _FOREIGN
# What archives, network storage and systems lay beside images: copies, thumbnails, deleted files.
_NOT_IMAGES = frozenset(
    ("__MACOSX", "@eaDir", "@Recycle", "#recycle", "#snapshot", "@Recently-Snapshot", "$RECYCLE.BIN", "lost+found")
)
# Pillow goes by the content, whatever the ending. It must not open PostScript, which is a program, and the like.
_OPENED = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "AVIF", "JPEG2000", "TIFF", "PPM")
_WAYS = 100  # paths by which one folder is listed: links that cross would never end
_MOST_PIXELS = 178_956_970  # above this Pillow itself suspects a decompression bomb
_LONGEST = 256  # times its width: the crop would show next to nothing of such a strip
_ORIENTATION = 0x0112
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_UPRIGHT = {number: Image.Transpose[name] for number, name in enumerate(_TURNS.split(), 2)}  # orientation -> way back
LEFT_OUT: dict[str, Any] = {"sha256": "", "width": 0, "height": 0, "mode": "", "thumbnail": None}
LEFT_OUT |= {"status": "left_out", "reason": "beyond limits.images"}


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


def inspect(path: Path) -> dict[str, Any]:
    """Returns the manifest's values for one file; a broken file raises no error."""
    row = LEFT_OUT | {"status": "ok", "reason": ""}
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


def _unreadable(error: OSError) -> None:
    raise InputError(
        f"images {error.filename}: the folder cannot be read: {error.strerror}; correct or remove it"
    ) from error


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
