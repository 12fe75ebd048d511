"""The explorer's folder: the page, the numbers of the grid, the pictures."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import vl_convert
from PIL import Image

from sae import images
from sae.evidence import classes, summary
from sae.explorer import parts, point, words
from sae.figures import conclusion
from sae.files import whole

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
        # In a function of its own, so that the library's names do not meet the page's.
        (part / "vega.js").write_text(f"(() => {{{vl_convert.javascript_bundle()}}})();\n")


def grid(
    metrics: pd.DataFrame,
    summaries: pd.DataFrame,
    methods: Sequence[str],
    baselines: Sequence[str],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what the page needs first: every measure of every grid point, SAEs and baselines.

    Args:
        metrics: of all points, with layer, k, method and seed.
        summaries: tables of `summary.table`, likewise.
        facts: what else the page is told: name, model, geometry, …
    """
    points: dict[tuple, dict[str, Any]] = {}
    for row in metrics.to_dict("records"):
        key = tuple(row[c] for c in _POINT)
        values = {m: parts.number(v, 4) for m, v in row.items() if isinstance(v, (int, float)) and m not in _POINT}
        points[key] = dict(zip(_POINT, key, strict=True)) | {"values": values, "intervals": {}}
    for row in summaries.to_dict("records"):
        here = points[tuple(row[c] for c in _POINT)]
        here["values"][row["measure"]] = parts.number(row["value"], 4)
        here["intervals"][row["measure"]] = parts.numbers([row["low"], row["high"]])
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
        "found": words.FOUND,
        "files": {"latents": point.LATENTS_PER_FILE, "images": point.IMAGES_PER_FILE},
        "kept": {"patch": point.PER_PATCH, "image": point.PER_IMAGE},
        "on": list(point.ON),
    }


def image_list(manifest: pd.DataFrame, opened: Sequence[int], pictured: Sequence[int]) -> dict[str, Any]:
    """Returns what the page knows of the images that have a picture, by column.

    opened: of those that can be opened, their places in the order of the ids.
    """
    used = images.used(manifest).reset_index(drop=True)  # what is an attribute is a matter of all images
    shown = used["id"].isin({*opened, *pictured}).to_numpy()
    rows, named = used[shown], {}
    for attribute, values in classes.attributes(used).items():
        part = values[shown].remove_unused_categories()
        kinds = [images.describe(str(c)) for c in part.categories]
        named[attribute] = {"names": kinds, "codes": part.codes.tolist()}
    return {
        "id": rows["id"].tolist(),
        "path": rows["path"].tolist(),
        "held_out": parts.pack(rows["split"] == images.HELD_OUT, "u1"),
        "opened": np.flatnonzero(rows["id"].isin(opened)).tolist(),
        "attributes": named,
    }


def pictures(folder: Path, manifest: pd.DataFrame, shards: Sequence[str], ids: Sequence[int]) -> None:
    """Writes the images as the model sees them, each once: `id`.webp."""
    with whole(folder) as part:
        part.mkdir()
        ordered = sorted({*ids})
        for first in range(0, len(ordered), 1000):
            for image, pixels in images.pictures(manifest, shards, ordered[first : first + 1000]).items():
                Image.fromarray(pixels).save(part / f"{image}.webp", quality=85, method=4)
