"""The built-in images: drawn by this project, seeded, with every factor and object mask known.

Each image shows one main object with a shape, colour, texture, size and position on one of several backgrounds;
half of the images also hold a much smaller companion with a shape, colour and texture of its own. The factors are
drawn independently and uniformly; rotation, hue, brightness, contrast and pixel noise vary on top. Image `index` of
`seed` is the same on every machine and does not depend on how many others are drawn.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from tqdm import tqdm

from sae.files import Rows, write_header

SIDE = 112  # pixels; 7 x 7 patches of 16
FACTORS: dict[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle", "star", "cross", "ring"),
    "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
    "texture": ("solid", "striped", "checked", "dotted"),
    "size": ("small", "medium", "large"),
    "position": tuple(
        f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right")
    ),
    "background": ("plain", "gradient", "clouds", "stripes", "grid"),
    "objects": ("one", "two"),
}
_HUES = dict(zip(FACTORS["colour"], (0, 30, 57, 120, 180, 222, 272, 318), strict=True))  # degrees
_RADII = {"small": (17, 20), "medium": (25, 29), "large": (35, 40)}  # pixels
_COMPANION_RADIUS = (6.0, 8.0)  # below every main object's, so that "main" is never in doubt
_CELLS = (36, 56, 76)  # centres of the nine positions, pixels
_SUPERSAMPLE = 2
_PARTS = ("background", "place", "companion", "object", "camera")  # of the drawing
_Y, _X = np.mgrid[:SIDE, :SIDE].astype(np.float32)


@dataclass(frozen=True)
class Concept:
    """One drawn image and its ground truth.

    Attributes:
        image: uint8 [112, 112, 3].
        mask: uint8 [112, 112], 0 background, 1 main object, 2 companion.
        factors: one value per key of FACTORS.
        companion: its shape, colour and texture; None where there is none.
    """

    image: np.ndarray
    mask: np.ndarray
    factors: dict[str, str]
    companion: dict[str, str] | None

    @property
    def label(self) -> str:
        """The label of the image: colour and shape of its main object."""
        return f"{self.factors['colour']} {self.factors['shape']}"


def draw(seed: int, index: int, fixed: dict[str, str] | None = None) -> Concept:
    """Draws image `index` of `seed`, with the factors of `fixed` set to these values."""
    rng = np.random.default_rng([seed, index])
    factors = _factors(rng) | (fixed or {})
    return _compose(factors, lambda _part: rng)


def variants(seed: int, index: int) -> tuple[Concept, dict[str, Concept]]:
    """Draws an image, and for every factor one that differs from it in this factor and in nothing else.

    Hue, turn, noise and all the rest are the same. The image has one object: a companion would have to make room where
    the object changes.
    """
    source = [seed, index, 1 + len(_PARTS)]
    first = _factors(np.random.default_rng(source)) | {"objects": "one"}

    def drawn(factors: dict[str, str]) -> Concept:
        # Each part has random numbers of its own: another value of one factor may use more of them.
        return _compose(factors, lambda part: np.random.default_rng([seed, index, 1 + _PARTS.index(part)]))

    others = {}
    for factor, values in FACTORS.items():
        rng = np.random.default_rng(source)
        _factors(rng)
        other = [value for value in values if value != first[factor]]
        others[factor] = drawn(first | {factor: other[rng.integers(len(other))]})
    return drawn(first), others


def _factors(rng: np.random.Generator) -> dict[str, str]:
    return {name: values[rng.integers(len(values))] for name, values in FACTORS.items()}


def _compose(factors: dict[str, str], random: Callable[[str], np.random.Generator]) -> Concept:
    """Draws an image with these factors.

    Args:
        random: One of _PARTS -> the source of its random numbers.
    """
    canvas = _background(random("background"), factors["background"])
    mask = np.zeros((SIDE, SIDE), np.uint8)

    rng = random("place")
    cell = FACTORS["position"].index(factors["position"])
    centre = (_CELLS[cell % 3] + rng.uniform(-4, 4), _CELLS[cell // 3] + rng.uniform(-4, 4))
    radius = rng.uniform(*_RADII[factors["size"]])
    companion = None
    if factors["objects"] == "two":
        rng = random("companion")
        companion = {name: FACTORS[name][rng.integers(len(FACTORS[name]))] for name in ("shape", "colour", "texture")}
        small = rng.uniform(*_COMPANION_RADIUS)
        spots = [(x, y) for x in range(10, SIDE - 9, 4) for y in range(10, SIDE - 9, 4)]
        free = [spot for spot in spots if math.dist(spot, centre) > radius + small + 2]
        _paint(rng, canvas, mask, companion, free[rng.integers(len(free))], small, 2)
    _paint(random("object"), canvas, mask, factors, centre, radius, 1)

    rng = random("camera")
    contrast, shift, noise = rng.uniform(0.8, 1.15), rng.uniform(-0.08, 0.08), np.float32(rng.uniform(0.02, 0.06))
    canvas = (canvas - 0.5) * contrast + (0.5 + shift) + noise * rng.standard_normal(canvas.shape, np.float32)
    return Concept((canvas.clip(0, 1) * 255).round().astype(np.uint8), mask, factors, companion)


def write(folder: Path, count: int, seed: int) -> None:
    """Writes images `0..count-1` of `seed` as an ordinary image folder with its ground truth.

    images/<index>.png; images/labels.csv with a row per image: path, label ("red circle"), one column per factor and
    companion_shape, companion_colour, companion_texture (empty where there is none); masks.npy, uint8
    [count, 112, 112] in the same order: 0 background, 1 main object, 2 companion.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    with (folder / "masks.npy").open("wb") as masks:
        write_header(masks, np.uint8, (count, SIDE, SIDE))
        for index in tqdm(range(count), desc="drawing", unit="image"):
            concept = draw(seed, index)
            path = f"{index:05d}.png"
            Image.fromarray(concept.image).save(folder / "images" / path, compress_level=1)
            masks.write(concept.mask.data)
            other = concept.companion or dict.fromkeys(("shape", "colour", "texture"), "")
            rows.append(
                {"path": path, "label": concept.label, **concept.factors}
                | {f"companion_{name}": value for name, value in other.items()}
            )
    pd.DataFrame(rows).to_csv(folder / "images" / "labels.csv", index=False)


def coverage(
    masks: Path, paths: Iterable[str], see: Callable[[Image.Image], np.ndarray], patches: tuple[int, int]
) -> np.ndarray:
    """Returns the share of each patch that the main object covers, float32 [images, patches].

    Args:
        masks: masks.npy of `write`.
        paths: the images' names there.
        see: the model's resizing and cropping, image -> uint8 [3, height, width]; see `vit.pixel_transform`.
        patches: rows and columns of patches.
    """
    every, shares = Rows(masks), []
    for path in paths:
        (mask,) = every.read(np.array([int(Path(path).stem)]))
        seen = see(Image.fromarray((mask == 1) * np.uint8(255)).convert("RGB"))[0] / 255
        height, width = (side // number for side, number in zip(seen.shape, patches, strict=True))
        seen = seen[: height * patches[0], : width * patches[1]]
        shares.append(seen.reshape(patches[0], height, patches[1], width).mean((1, 3)).ravel())
    return np.array(shares, np.float32)


def _background(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Returns a greyish canvas, float32 [112, 112, 3] in 0..1: objects are saturated, backgrounds are not."""
    hue, saturation, value = rng.uniform(), rng.uniform(0, 0.2), rng.uniform(0.25, 0.75)
    angle, phase = rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
    across = math.cos(angle) * _X + math.sin(angle) * _Y
    if kind == "plain":
        shade = np.zeros_like(_X)
    elif kind == "gradient":
        shade = (across - across.mean()) / np.ptp(across) * _sign(rng) * rng.uniform(0.45, 0.7)
    elif kind == "clouds":
        small = Image.fromarray(rng.uniform(-1, 1, (6, 6)).astype(np.float32))
        shade = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) * rng.uniform(0.2, 0.3)
    elif kind == "stripes":
        shade = np.sign(np.sin(across * (2 * math.pi / rng.uniform(15, 22)) + phase)) * rng.uniform(0.08, 0.15)
    else:  # grid
        period, first, second = rng.uniform(11, 16), *rng.uniform(0, 10, 2)
        lines = ((_X + first) % period < 1.6) | ((_Y + second) % period < 1.6)
        shade = lines * _sign(rng) * rng.uniform(0.2, 0.35)
    colour = np.array(colorsys.hsv_to_rgb(hue, saturation, 1), np.float32)
    return (value + shade)[..., None].astype(np.float32) * colour


def _paint(
    rng: np.random.Generator,
    canvas: np.ndarray,
    mask: np.ndarray,
    look: dict[str, str],
    centre: tuple[float, float],
    radius: float,
    mark: int,
) -> None:
    """Paints one object onto `canvas` and marks it in `mask`, both in place."""
    reach = math.ceil(1.25 * radius) + 1  # every shape stays within 1.25 radii: the canvas outside does not change
    left, top = (max(0, int(c) - reach) for c in centre)
    window = np.s_[top : int(centre[1]) + reach + 1, left : int(centre[0]) + reach + 1]
    turn = rng.uniform(-0.3, 0.3)
    hue = (_HUES[look["colour"]] + rng.uniform(-5, 5)) / 360 % 1
    bright = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.8, 1), rng.uniform(0.8, 1)), np.float32)
    x, y = _X[window] - np.float32(centre[0]), _Y[window] - np.float32(centre[1])
    cover = _silhouette(look["shape"], (centre[0] - left, centre[1] - top), radius, turn, x.shape)
    pattern = _texture(rng, look["texture"], x, y, turn)
    paint = bright * (1 - np.float32(0.6) * pattern[..., None])  # the second tone is the same hue, darker
    canvas[window] += cover[..., None] * (paint - canvas[window])
    mask[window][cover > 0.5] = mark


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.integers(2) else -1


def _texture(rng: np.random.Generator, kind: str, x: np.ndarray, y: np.ndarray, turn: float) -> np.ndarray:
    """Returns where the darker tone is, float32 of 0 and 1 in the shape of the coordinates x and y (pixels)."""
    angle, period = turn + rng.uniform(-0.5, 0.5), rng.uniform(7, 9)
    u = (math.cos(angle) * x + math.sin(angle) * y) % period
    v = (math.cos(angle) * y - math.sin(angle) * x) % period
    if kind == "solid":
        dark = np.zeros(x.shape, bool)
    elif kind == "striped":
        dark = u < period / 2
    elif kind == "checked":
        dark = (u < period / 2) ^ (v < period / 2)
    else:  # dotted
        dark = (u - period / 2) ** 2 + (v - period / 2) ** 2 < (0.3 * period) ** 2
    return dark.astype(np.float32)


def _silhouette(
    shape: str, centre: tuple[float, float], radius: float, turn: float, window: tuple[int, ...]
) -> np.ndarray:
    """Returns the share of each pixel of a window (rows, columns) that the shape covers, float32 in 0..1."""
    big = Image.new("L", (window[1] * _SUPERSAMPLE, window[0] * _SUPERSAMPLE))
    pen = ImageDraw.Draw(big)
    cx, cy = (c * _SUPERSAMPLE for c in centre)
    r = radius * _SUPERSAMPLE

    def disc(x: float, y: float, size: float, fill: int = 255) -> None:
        pen.ellipse((x - size, y - size, x + size, y + size), fill=fill)

    def polygon(points: list[tuple[float, float]]) -> None:  # corners in units of the radius, turned
        c, s = math.cos(turn) * r, math.sin(turn) * r
        pen.polygon([(cx + c * x - s * y, cy + s * x + c * y) for x, y in points], fill=255)

    def rectangle(width: float, height: float) -> None:
        polygon([(-width, -height), (width, -height), (width, height), (-width, height)])

    if shape == "circle":
        disc(cx, cy, r * 0.95)
    elif shape == "square":
        rectangle(0.82, 0.82)
    elif shape == "triangle":
        polygon([(np.sin(a) * 1.1, -np.cos(a) * 1.1) for a in np.arange(3) * 2 * np.pi / 3])
    elif shape == "star":
        polygon(
            [(np.sin(a) * q, -np.cos(a) * q) for a, q in zip(np.arange(10) * np.pi / 5, [1.15, 0.48] * 5, strict=True)]
        )
    elif shape == "cross":
        rectangle(1.05, 0.36)
        rectangle(0.36, 1.05)
    else:  # ring
        disc(cx, cy, r)
        disc(cx, cy, r * 0.52, 0)
    return np.asarray(big.reduce(_SUPERSAMPLE), np.float32) / 255
