"""The explorer's folder: the page, the numbers of the grid and the pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import vl_convert
from matplotlib.colors import to_hex
from PIL import Image

from sae import images
from sae.evidence import classes, conclusion, summary
from sae.evidence.measures import FOUND, MEASURES
from sae.explorer import class_pages, parts, point, words
from sae.figures import style
from sae.files import whole
from sae.images.pixels import read_pixels
from sae.latent_codes import HISTOGRAM_EDGES

_WEB = Path(__file__).parent / "web"
_POINT = ["layer", "k", "method", "seed"]


def page(path: Path) -> None:
    """Writes index.html, which reads the scripts and data beside it."""
    with whole(path) as part:
        shutil.copyfile(_WEB / "index.html", part)


def app(folder: Path) -> None:
    """Writes the page's scripts and style, and the charting library: Vega-Lite, as it comes in vl-convert's package."""
    with whole(folder) as part:
        part.mkdir()
        for file in _WEB.iterdir():
            if file.suffix in (".js", ".css"):
                shutil.copyfile(file, part / file.name)
        # Inside a function, so that the library's global names do not collide with the page's.
        library = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its annotation has no defaults
        (part / "vega.js").write_text(f"(() => {{{library}}})();\n")


def grid(
    metrics: pd.DataFrame,
    summaries: pd.DataFrame,
    methods: Sequence[str],
    baselines: Sequence[str],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the first part that the page loads: all numbers of the grid, of SAEs and baselines, and how to show them.

    The page's scripts contain no measure, column, filter, threshold or colour: they read all of them from here.

    Args:
        metrics: of all points, with layer, k, method and seed.
        summaries: tables of `summary.table`, likewise.
        facts: the experiment's name, model, tokens, geometry and classes.
    """
    points: dict[tuple, dict[str, Any]] = {}
    for row in metrics.to_dict("records"):
        key = tuple(row[c] for c in _POINT)
        values = {m: parts.number(v, 4) for m, v in row.items() if isinstance(v, (int, float)) and m not in _POINT}
        points[key] = dict(zip(_POINT, key, strict=True)) | {"values": values, "intervals": {}}
    for row in summaries.to_dict("records"):
        summarised = points[tuple(row[c] for c in _POINT)]
        summarised["values"][row["measure"]] = parts.number(row["value"], 4)
        summarised["intervals"][row["measure"]] = parts.numbers([row["low"], row["high"]])
    answer = None
    if baselines:
        compared = summary.compare(summaries, list(methods), list(baselines))
        answer = conclusion.sentences(conclusion.against_best(compared))[0] if len(compared) else None
    return {
        **facts,
        "methods": list(methods),
        "baselines": list(baselines),
        "points": [points[key] for key in sorted(points, key=lambda key: (key[2] not in methods, *key))],
        "answer": answer,
        "measures": [asdict(measure) for measure in MEASURES.values()],
        "columns": _with_keys(words.COLUMNS),
        "filters": [asdict(kind) for kind in words.FILTERS],
        "on": _with_keys(words.ON),
        "panels": list(words.PANELS.items()),
        "edges": HISTOGRAM_EDGES.tolist(),
        "scales": {kind: _scale(kind, metrics[kind].tolist()) for kind in style.SCALES},
        "found": FOUND,
        "files": {
            "latents": point.LATENTS_PER_FILE,
            "images": point.IMAGES_PER_FILE,
            "classes": class_pages.CLASSES_PER_FILE,
        },
        "kept": {"patch": point.PER_PATCH, "image": point.PER_IMAGE},
    }


def _with_keys(columns: Mapping[str, words.Column]) -> list[dict[str, Any]]:
    return [{"key": key, **asdict(column)} for key, column in columns.items()]


def _scale(kind: str, values: Iterable[int]) -> dict[str, list]:
    """Returns the grid's layers or ks in order and their colours: the figures', and brighter ones for a dark page."""
    light = style.colours(kind, values)
    dark = matplotlib.colormaps[style.SCALES[kind][0]](np.linspace(1, 0.3, len(light)))
    return {"values": list(light), "light": [to_hex(c) for c in light.values()], "dark": [to_hex(c) for c in dark]}


def image_list(manifest: pd.DataFrame, opened: Sequence[int], pictured: Sequence[int]) -> dict[str, Any]:
    """Returns the columns of the images that have a picture: id, path, held_out, and each attribute.

    opened: the positions, among these, of the images that can be opened.
    """
    used = images.used(manifest).reset_index(drop=True)  # all images decide which columns are attributes
    shown = used["id"].isin({*opened, *pictured}).to_numpy()
    rows, named = used[shown], {}
    for attribute, values in classes.attributes(used).items():
        values = values[shown].remove_unused_categories()
        names = [images.describe(str(category)) for category in values.categories]
        named[attribute] = {"names": names, "codes": values.codes.tolist()}
    return {
        "id": rows["id"].tolist(),
        "path": rows["path"].tolist(),
        "held_out": parts.pack(rows["split"] == images.HELD_OUT, "u1"),
        "opened": np.flatnonzero(rows["id"].isin(opened)).tolist(),
        "attributes": named,
    }


def pictures(folder: Path, manifest: pd.DataFrame, shards: Sequence[str], ids: Sequence[int]) -> None:
    """Writes each image as the model sees it, once: `id`.webp."""
    with whole(folder) as part:
        part.mkdir()
        ordered = sorted({*ids})
        for first in range(0, len(ordered), 1000):
            for image, pixels in read_pixels(manifest, shards, ordered[first : first + 1000]).items():
                Image.fromarray(pixels).save(part / f"{image}.webp", quality=85, method=4)
