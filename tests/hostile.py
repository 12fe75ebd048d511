"""A folder of images as nobody wants them: `python tests/hostile.py FOLDER` fills FOLDER, and lists what it holds.

Every picture has a colour of its own in each corner, so that a test can see whether it was read the right way up.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

SIZE = (48, 32)
BROKEN, HUGE, DUPLICATE = "broken", "huge", "duplicate"
# Names that shells, Snakemake, formats, HTML, LaTeX, spreadsheets or file systems take for something else.
NAMES = (
    "new\nline", "tab\tand\rreturn", "\x1b[31mred\x1b[0m bell\a", "quote\", and 'tick'", "`id`", "$(id) $HOME ${x}",
    "{layer} {} {{x}}", "{{ 7 * 7 }} {% x %}", "%s %d %2e%2e", "*?[a-z]", "back\\slash", "; rm -rf x; #", "&amp; <b>",
    "<script>alert(1)<", "<img src=x onerror=alert(1)>", "-rf", "--help", "=1+1", "+1", "@SUM(1)", "~", " space ",
    "name.", "CON", "NULL", "nan", "None", "1e5", "$x^2_3$ \\frac", "猫 🐈‍⬛", "\u202etfel ot thgir",
    "\u2028line\u00a0", unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"), "case", "CASE",
    "__proto__", "constructor", "a" * 251, "ü" * 125,
)  # fmt: skip
LOST = os.fsdecode(b"latin \xe9")  # no UTF-8


@dataclass(frozen=True)
class Kind:
    """What becomes of one path: its status in the manifest, a part of the reason, and the four corners as it is read.

    status: None where the manifest must not list it.
    """

    status: str | None = "ok"
    reason: str = ""
    corners: np.ndarray | None = None


def corners(number: int) -> np.ndarray:
    """Returns the colours of picture `number`, uint8 [4, 3]: top left, top right, bottom left, bottom right."""
    return np.random.default_rng(number).permutation(np.linspace(20, 235, 12)).reshape(4, 3).astype(np.uint8)


def drawn(number: int) -> Image.Image:
    """Returns picture `number`, RGB, 48 x 32."""
    return Image.fromarray(corners(number).reshape(2, 2, 3).repeat(16, 0).repeat(24, 1))


def corners_of(image: Image.Image) -> np.ndarray:
    """Returns the mean colours of the middles of the four quarters of an image, int64 [4, 3]."""
    wide, high = image.size
    places = [(x, y) for y in (high // 4, 3 * high // 4) for x in (wide // 4, 3 * wide // 4)]
    return np.array([image.getpixel(place) for place in places], np.int64)


def exif(*entries: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """Returns an EXIF block of (tag, type, count, four bytes or more)."""
    body, extra = struct.pack(order + "H", len(entries)), b""
    at = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, data in entries:
        where = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(order + "I", at + len(extra))
        body += struct.pack(order + "HHI", tag, kind, count) + where
        extra += data if len(data) > 4 else b""
    return b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 0) + extra


def with_exif(jpeg: bytes, block: bytes) -> bytes:
    """Returns a JPEG with an EXIF block in front of everything else."""
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


def saved(image: Image.Image, ending: str, **how: object) -> bytes:
    """Returns the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, ending, **how)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Returns a PNG by hand, as Pillow would never write it; `pixels` are its rows with their filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    every = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in every
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def files() -> dict[str, tuple[bytes, Kind]]:
    """Returns name -> content and kind, for the files whose content is unusual."""
    made: dict[str, tuple[bytes, Kind]] = {}

    def add(
        name: str, content: bytes | Callable[[Image.Image], bytes], reason: str = "", status: str | None = "ok",
        change: Callable[[np.ndarray], np.ndarray] = lambda seen: seen,
    ) -> None:  # fmt: skip
        number = len(made)
        content = content if isinstance(content, bytes) else content(drawn(number))
        made[name] = content, Kind(status, reason, change(corners(number)) if status == "ok" else None)

    def grey(seen: np.ndarray) -> np.ndarray:
        return np.repeat(np.array(Image.fromarray(seen[None]).convert("L")).T, 3, 1)

    def written(ending: str, mode: str = "RGB", **how: object) -> Callable[[Image.Image], bytes]:
        return lambda image: saved(image.convert(mode), ending, **how)

    def numbers(dtype: type, factor: int) -> Callable[[Image.Image], bytes]:
        values = lambda image: np.array(image.convert("L"), np.int64) * factor  # noqa: E731
        return lambda image: saved(Image.fromarray(values(image).astype(dtype)), "tiff")

    def half(image: Image.Image) -> Image.Image:
        """The right half is transparent."""
        mask = Image.new("L", SIZE, 255)
        mask.paste(0, (24, 0, 48, 32))
        image.putalpha(mask)
        return image

    def white(seen: np.ndarray) -> np.ndarray:
        return np.where(np.array([[False], [True], [False], [True]]), 255, seen)

    # Damaged.
    for ending in ("png", "jpeg", "gif", "webp", "tiff", "bmp", "jpeg2000", "avif"):
        name = {"jpeg2000": "jp2"}.get(ending, ending)
        add(f"truncated.{name}", lambda image, e=ending: (lambda b: b[: len(b) // 2])(saved(image, e)), "", BROKEN)
        add(f"start.{name}", lambda image, e=ending: saved(image, e)[:20], "", BROKEN)
    add("empty.png", b"", "the file is empty", BROKEN)
    add("zeros.jpg", bytes(5000), "not an image of a known format", BROKEN)
    add("text.jpg", b"no image", "not an image of a known format", BROKEN)
    add("page.png", b"<html><script>alert(1)</script></html>", "not an image of a known format", BROKEN)
    add("a wrong checksum.png", lambda image: saved(image, "png").replace(b"IDAT", b"IDAt", 1), "", BROKEN)
    add("no pixels.png", png(0, 0, 8, 2, b""), "", BROKEN)
    add("text bomb.png", png(8, 8, 8, 0, bytes(72), (b"zTXt", b"x\0\0" + zlib.compress(bytes(2**27), 9))), "", BROKEN)
    # Formats that Pillow opens by content whatever the ending says: PostScript is a program, and runs Ghostscript.
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 32\n%%EndComments\n(%pipe%id) (w) file\nshowpage\n%%EOF\n"
    add("program.jpg", script, "not an image of a known format", BROKEN)
    add("fits.png", b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800), "not an image", BROKEN)
    add("vector.svg", b"<svg/>", ".svg files cannot be read", BROKEN)
    add("phone.HEIC", b"\0\0\0\x18ftypheic", ".HEIC files cannot be read; save it as PNG or JPEG", BROKEN)
    # Sizes.
    add("claims to be huge.png", png(100_000, 100_000, 8, 2, b""), "megapixels", HUGE)
    add("largest.png", png(2**31 - 1, 2**31 - 1, 1, 0, b""), "megapixels", HUGE)
    add("bomb.png", png(20_000, 9_500, 1, 0, bytes(2501 * 9_500)), "megapixels", HUGE)
    for name, size in (("strip", (9000, 2)), ("tall strip", (2, 9000))):
        add(f"{name}.png", lambda image, s=size: saved(image.resize(s), "png"),
            "4500 times as long as wide; crop it to use it", HUGE)  # fmt: skip
    add("short strip.png", lambda image: saved(image.resize((500, 2), Image.Resampling.NEAREST), "png"))
    made["one pixel.png"] = saved(Image.new("RGB", (1, 1), "teal"), "png"), Kind(corners=np.array([[0, 128, 128]] * 4))
    # Endings that lie.
    add("png.jpg", written("png"))
    add("jpeg.png", written("jpeg", quality=95))
    add("gif.webp", written("gif"), "palette")
    add("UPPER.JPG", written("jpeg", quality=95))
    # Colours.
    add("cmyk.jpg", written("jpeg", "CMYK", quality=95), "CMYK")
    add("cmyk.tif", written("tiff", "CMYK"), "CMYK")
    add("ycbcr.tif", written("tiff", "YCbCr"))
    add("lab.tif", lambda image: saved(_lab(image), "tiff"), "LAB")
    add("grey.png", written("png", "L"), "greyscale", change=grey)
    add("grey.jpg", written("jpeg", "L", quality=95), "greyscale", change=grey)
    add("palette.png", lambda image: saved(image.quantize(8), "png"), "palette")
    add("palette.gif", written("gif"), "palette")
    add("palette.bmp", lambda image: saved(image.quantize(8), "bmp"), "palette")
    add("progressive.jpg", written("jpeg", quality=95, progressive=True))
    add("lossless.webp", written("webp", lossless=True))
    add("picture.avif", written("avif", quality=95))
    add("picture.jp2", written("jpeg2000"))
    add("picture.bmp", written("bmp"))
    add("picture.ppm", written("ppm"))
    add("picture.tif", written("tiff", compression="tiff_lzw"))
    # Bits.
    chequered = np.repeat(np.array([[255], [0], [0], [255]]), 3, 1)
    for bits in (1, 2, 4, 16):
        light, dark = b"\xff" * 3 * bits, b"\0" * 3 * bits
        rows = (b"\0" + light + dark) * 16 + (b"\0" + dark + light) * 16
        made[f"{bits}-bit.png"] = png(*SIZE, bits, 0, rows), Kind("ok", "greyscale", chequered)
    one_bit = Image.open(io.BytesIO(made["1-bit.png"][0]))
    made["1-bit.tif"] = saved(one_bit, "tiff"), Kind("ok", "greyscale", chequered)
    for name, dtype, factor, reason, status in (
        ("16 bits", np.uint16, 257, "greyscale", "ok"),
        ("32 bits", np.int32, 257, "greyscale", "ok"),
        ("large numbers", np.int32, 2**22, "range is unknown", BROKEN),
        ("floats", np.float32, 1, "range is unknown", BROKEN),
    ):
        add(f"{name}.tif", numbers(dtype, factor), reason, status, grey)
    # Several frames.
    frames = [Image.new("RGB", SIZE, colour) for colour in ("black", "white")]
    for ending in ("gif", "png", "webp", "tiff"):
        add(f"moving.{ending}", written(ending, save_all=True, append_images=frames), "first of 3 frames")
    # Transparency.
    add("alpha.png", lambda image: saved(half(image), "png"), "transparent", change=white)
    add("alpha.webp", lambda image: saved(half(image), "webp", lossless=True), "transparent", change=white)
    add(
        "grey alpha.png",
        lambda image: saved(half(image).convert("LA"), "png"),
        "transparent",
        change=lambda seen: white(grey(seen)),
    )
    add("one colour clear.png", lambda image: saved(image, "png", transparency=image.getpixel((47, 0))), "transparent",
        change=lambda seen: np.where(np.array([[False], [True], [False], [False]]), 255, seen))  # fmt: skip
    add("palette clear.png", lambda image: saved(q := image.quantize(4), "png", transparency=q.getpixel((0, 0))),
        "transparent",
        change=lambda seen: np.where(np.array([[True], [False], [False], [False]]), 255, seen))  # fmt: skip
    # Orientations, each beside a tag whose value lies outside the block or has the wrong type.
    turned = ("0123", "1032", "3210", "2301", "0213", "2031", "3120", "1302")
    neighbours = (
        (0x010E, 2, 9, b"\xff" * 4),
        (0x8769, 4, 1, b"\xff" * 4),
        (0x011A, 5, 1, b"\0" * 4),
        (0x0128, 77, 1, b""),
    )
    for value, order in enumerate(turned, 1):
        block, places = exif((0x0112, 3, 1, struct.pack("<H", value)), neighbours[value % 4]), [*map(int, order)]
        add(f"orientation {value}.jpg", lambda image, b=block: with_exif(saved(image, "jpeg", quality=95), b),
            f"EXIF orientation {value}" if value > 1 else "", change=lambda seen, p=places: seen[p])  # fmt: skip
    for name, entry in {
        "0": (0x0112, 3, 1, b"\0\0"),
        "9": (0x0112, 3, 1, b"\x09\0"),
        "as text": (0x0112, 2, 2, b"6\0"),
        "of nothing": (0x0112, 3, 0, b""),
    }.items():
        add(f"orientation {name}.jpg", lambda image, e=entry: with_exif(saved(image, "jpeg", quality=95), exif(e)))
    add(
        "no exif in the exif.jpg", lambda image: with_exif(saved(image, "jpeg", quality=95), b"Exif\0\0" + b"\xff" * 60)
    )
    # Colour profiles.
    add("icc of noise.jpg", written("jpeg", quality=95, icc_profile=b"no profile" * 30))
    add("icc of noise.png", written("png", icc_profile=bytes(range(256))))
    add(
        "icc of grey.png", written("png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())
    )
    # More than an image.
    add("a web page behind.jpg", lambda image: saved(image, "jpeg", quality=95) + b"<script>alert(1)</script>")
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "<script>alert(1)</script> $(id)")
    add("a script inside.png", written("png", pnginfo=info))
    return made


def _lab(image: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(image, *profiles, outputMode="LAB")


def fill(folder: Path) -> dict[str, Kind]:
    """Fills a new folder, and returns path -> kind, for the paths as the manifest writes them.

    Beside the folder a second one appears, to which links lead.
    """
    kinds: dict[str, Kind] = {}

    def put(path: str, content: bytes, kind: Kind) -> None:
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        kinds[path.encode("utf-8", "backslashreplace").decode()] = kind

    for name, (content, kind) in files().items():
        put(f"contents/{name}", content, kind)
    for number, name in enumerate(NAMES, 1000):  # as a class, whose images have this name too
        for copy in (number, number + 1000):
            path = f"{name}/{name}.png" if copy == number else f"{name}/{copy}.png"
            put(path, saved(drawn(copy), "png"), Kind(corners=corners(copy)))
    for number, path in enumerate((f"{LOST}/in a folder.png", f"contents/{LOST}.png"), 3000):
        put(path, saved(drawn(number), "png"), Kind(BROKEN, "its name is not UTF-8"))
    put("contents/.hidden.png", saved(drawn(3100), "png"), Kind(None))
    put(".../x.png", saved(drawn(3102), "png"), Kind(None))
    put("__MACOSX/copy.png", saved(drawn(3101), "png"), Kind(None))
    # One content under two classes.
    for path, kind in {
        "one/same.png": Kind(corners=corners(3200)),
        "two/same.png": Kind(DUPLICATE, "same content as one/same.png, which is labelled one"),
    }.items():
        put(path, saved(drawn(3200), "png"), kind)
    # Links: out of the folder, twice to one folder, to nothing, to themselves, to a folder above them; and no files.
    outside = folder.with_name(f"{folder.name} outside")
    outside.mkdir(parents=True)
    drawn(3300).save(outside / "x.png")
    drawn(3301).save(outside / "y.png")
    links = folder / "links"
    links.mkdir()
    targets: dict[str, Path | str] = {"out": outside, "second": outside, "x.png": outside / "x.png", "loop": folder}
    targets |= {"here": links, "self.png": "self.png", "gone.png": "nowhere.png", "device.png": "/dev/zero"}
    for name, target in targets.items():
        (links / name).symlink_to(target)
    os.mkfifo(links / "pipe.png")
    (links / "folder.png").mkdir()
    twice = Kind(DUPLICATE, "same content as links/out/")
    kinds |= {f"links/out/{n}.png": Kind(corners=corners(c)) for n, c in (("x", 3300), ("y", 3301))}
    kinds |= {"links/second/x.png": twice, "links/second/y.png": twice, "links/x.png": twice}
    kinds |= {f"links/{name}.png": Kind(BROKEN) for name in ("gone", "self")}
    kinds |= {f"links/{name}.png": Kind(BROKEN, "not a file") for name in ("device", "pipe")}
    return kinds


if __name__ == "__main__":
    for path, kind in fill(Path(sys.argv[1])).items():
        print(f"{kind.status}\t{path!r}\t{kind.reason}")
