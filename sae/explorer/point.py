"""The explorer's data of one grid point: its latents, and what fires on each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from sae import images
from sae.autoencoder import SparseAutoencoder
from sae.codes import Codes, stream
from sae.explorer import parts, relatives, words
from sae.explorer.parts import number, numbers, pack
from sae.points import Layer

LATENTS_PER_FILE = 32
IMAGES_PER_FILE = 16
PER_PATCH, PER_IMAGE = 6, 24  # the strongest latents that are kept of each token, and everywhere of each image
_CLASSES, _MOVED = 5, 8  # how many classes are shown of a latent, and how many of each of its effects
PANELS = ("top", "q75", "q50", "q25", "silent")
ON = ("on_class", "on_register", "on_patch", "on_border", "on_high_norm", "by_row", "by_column", "by_place")


@dataclass(frozen=True)
class Tables:
    """What is known of the latents of one grid point: tables as in docs/data.md.

    fates: of this layer, method and seed; chains: of this k, method and seed; empty where the grid has one k or one
    layer.
    """

    latents: pd.DataFrame
    images: pd.DataFrame
    classes: pd.DataFrame
    scores: pd.DataFrame
    causes: pd.DataFrame
    effects: pd.DataFrame
    fates: pd.DataFrame
    chains: pd.DataFrame


def write(
    folder: Path,
    point: Mapping[str, Any],
    sae: SparseAutoencoder,
    layer: Layer,
    tables: Tables,
    seeds: Sequence[int],
    most: int,
) -> None:
    """Writes all parts of one grid point under `folder`, in layer=L/k=K/method=M/seed=S.

    table: all latents, by column. latents/N: what is shown of each, 32 to a file. images/N: what fires on each of the
    images that can be opened, 16 to a file.

    Args:
        point: layer, k, method and seed.
        seeds: of the grid; counterparts in other ones can be named, but not followed.
        most: how many images can be opened.
    """
    name = "/".join(f"{key}={point[key]}" for key in ("layer", "k", "method", "seed"))
    opened = openable(layer.manifest, most)["id"].to_numpy()
    shown = tables.images[tables.images["panel"] != "silent"]
    lit, on_images = _encode(sae, layer, shown, opened)
    tested = tables.classes[tables.classes["q"].notna()]
    best, confirmed = _best(tested), _best(tested[tested["confirmed"].astype(bool)])
    parts.write(folder, f"{name}/table", _table(tables, best))
    about = _latents(sae, tables, best, confirmed, lit, layer.geometry.grid[1], point, seeds)
    for first in range(0, len(about), LATENTS_PER_FILE):
        chunk = about[first : first + LATENTS_PER_FILE]
        parts.write(folder, f"{name}/latents/{first // LATENTS_PER_FILE:04d}", chunk)
    for first in range(0, len(opened), IMAGES_PER_FILE):
        chunk = [on_images[image] for image in opened[first : first + IMAGES_PER_FILE]]
        parts.write(folder, f"{name}/images/{first // IMAGES_PER_FILE:04d}", chunk)


def openable(manifest: pd.DataFrame, most: int) -> pd.DataFrame:
    """Returns the manifest's rows of the images that can be opened, in the order of their ids."""
    return images.sample(images.used(manifest), most)


def _encode(
    sae: SparseAutoencoder, layer: Layer, shown: pd.DataFrame, opened: np.ndarray
) -> tuple[dict[tuple[int, int], tuple[np.ndarray, np.ndarray]], dict[int, dict[str, Any]]]:
    """Passes once over the images.

    Returns:
        (latent, image) -> patches on which it fires and its activations there, for the rows of `shown` (latent,
        image_id); and image -> what fires on it.
    """
    geometry = layer.geometry
    prefix = sum(role != "patch" for role in geometry.roles[geometry.select(sae.config.tokens)])
    ids = np.union1d(shown["image_id"].unique(), opened)
    wanted = {image: rows.to_numpy() for image, rows in shown.groupby("image_id")["latent"]}
    lit, on_images = {}, {}
    with tqdm(total=len(ids), desc="explorer", unit="image") as progress:
        for codes in stream(sae, layer.tokens(sae.config.tokens, ids)):
            row, latent, value = codes.entries()
            image, token = row // codes.tokens, row % codes.tokens
            pairs = np.zeros((len(codes.ids), codes.latents), bool)
            for place, of_image in enumerate(codes.ids):
                pairs[place, wanted.get(of_image, [])] = True
            keep = np.flatnonzero(pairs[image, latent] & (token >= prefix))
            keep = keep[np.lexsort((token[keep], latent[keep], image[keep]))]
            for part in _runs(image[keep], latent[keep]):
                here = keep[part]
                lit[int(latent[here[0]]), int(codes.ids[image[here[0]]])] = token[here] - prefix, value[here]
            on_images |= _on_images(codes, np.isin(codes.ids, opened))
            progress.update(len(codes.ids))
    return lit, on_images


def _runs(*keys: np.ndarray) -> list[slice]:
    """Returns where equal keys stand, in sorted arrays."""
    if not len(keys[0]):
        return []
    change = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    edges = [0, *(np.flatnonzero(change) + 1), len(keys[0])]
    return [slice(a, b) for a, b in pairwise(edges)]


def _on_images(codes: Codes, wanted: np.ndarray) -> dict[int, dict[str, Any]]:
    """Returns of the wanted images of a block: for each, its strongest latents first, where they fire.

    scale: the largest activation on the image. latents: by falling strength; the first `everywhere` with all the tokens
    on which they fire, the others where they are among the strongest of a token. counts: how many of tokens and values
    belong to each. values: activations in 1/255 of the scale, at least 1. strongest: of the first `everywhere`.
    """
    row, latent, value = codes.entries()
    order = np.lexsort((-value, row))
    rank = np.empty(len(row), np.int64)
    rank[order] = np.arange(len(row)) - np.repeat(codes.z.indptr[:-1], np.diff(codes.z.indptr))
    found = {}
    for place in np.flatnonzero(wanted):
        strongest = codes.images[[place]]
        by_strength = np.lexsort((strongest.indices, -strongest.data))
        listed = strongest.indices[by_strength][:PER_IMAGE]
        here = slice(codes.z.indptr[place * codes.tokens], codes.z.indptr[(place + 1) * codes.tokens])
        keep = np.flatnonzero((rank[here] < PER_PATCH) | np.isin(latent[here], listed)) + here.start
        position = np.empty(codes.latents, np.int64)
        position[strongest.indices[by_strength]] = np.arange(len(by_strength))
        keep = keep[np.lexsort((row[keep], position[latent[keep]]))]
        runs = _runs(latent[keep])
        scale = float(strongest.data.max()) if len(strongest.data) else 0.0
        found[int(codes.ids[place])] = {
            "scale": number(scale, 4),
            "everywhere": len(listed),
            "strongest": numbers(strongest.data[by_strength][:PER_IMAGE]),
            "latents": pack([latent[keep[run.start]] for run in runs], "u4"),
            "counts": pack([run.stop - run.start for run in runs], "u2"),
            "tokens": pack(row[keep] - place * codes.tokens, "u2"),
            "values": pack(_levels(value[keep], scale), "u1"),
        }
    return found


def _levels(values: np.ndarray, scale: float) -> np.ndarray:
    """Returns activations in steps of 1/255 of the scale; nothing that fires becomes 0."""
    return np.clip(np.rint(values * (255 / scale)) if scale else values, 1, 255)


def _best(classes: pd.DataFrame) -> pd.DataFrame:
    """Returns by latent the row of the class with the highest MCC on train images, as `classes.named` does."""
    order = classes.sort_values(["latent", "mcc", "attribute"], ascending=[True, False, True])
    return order.drop_duplicates("latent").set_index("latent")


def _table(tables: Tables, best: pd.DataFrame) -> dict[str, Any]:
    """Returns the columns of `words.COLUMNS`, an entry per latent; classes by their place in `names`."""
    latents, n = tables.latents, len(tables.latents)
    known = best[best["confirmed"].astype(bool)]
    named = known["attribute"].where(known["attribute"] != "label", "").astype(str)
    text = named.where(named == "", named + ": ") + known["name"].astype(str)
    kinds = pd.Categorical(text.reindex(range(n)))
    effect = tables.causes.set_index("latent")["ratio"] if "ratio" in tables.causes else pd.Series(dtype=float)
    roles = pd.Categorical(latents["role"].replace("", None))
    return {
        "size": n,
        "alive": pack(latents["status"] == "alive", "u1"),
        "names": kinds.categories.tolist(),
        "class": kinds.codes.tolist(),
        "mcc": numbers(best["mcc_held_out"].reindex(range(n))),
        "density": numbers(latents["frequency_held_out"]),
        "images": numbers(latents["image_frequency"]),
        "max": numbers(latents["max_activation"]),
        "stability": numbers(latents["stability_correlation"]),
        "monosemanticity": numbers(tables.scores["monosemanticity"]),
        "effect": numbers(effect.reindex(range(n))),
        "roles": roles.categories.tolist(),
        "role": roles.codes.tolist(),
    }


def _latents(
    sae: SparseAutoencoder,
    tables: Tables,
    best: pd.DataFrame,
    confirmed: pd.DataFrame,
    lit: Mapping[tuple[int, int], tuple[np.ndarray, np.ndarray]],
    grid_columns: int,
    point: Mapping[str, Any],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Returns what the page shows of each latent."""
    pictures, classes, effects = (_by_latent(part) for part in (tables.images, _shown(tables.classes), tables.effects))
    causes = tables.causes.set_index("latent")
    nearest = relatives.nearest(sae.W_dec.cpu().numpy(), (tables.latents["status"] == "alive").to_numpy())
    elsewhere = relatives.relatives(tables.latents, tables.fates, tables.chains, point, seeds)
    about = []
    for fact, (_index, score) in zip(tables.latents.to_dict("records"), tables.scores.iterrows(), strict=True):
        latent = fact["latent"]
        of_class = best.loc[latent] if latent in best.index else None
        other = confirmed.loc[latent] if latent in confirmed.index else None
        cause = causes.loc[latent] if latent in causes.index else None
        entry = {
            "headline": words.headline(fact, of_class, other),
            "checks": words.checks(fact, of_class, score, cause),
        }
        if fact["status"] != "dead":
            entry |= _pictures(pictures[latent], lit, latent, grid_columns)
            entry |= {
                "histogram": np.asarray(fact["histogram"]).tolist(),
                "mean": number(fact["mean_activation"]),
                "density": numbers([fact["frequency"], fact["frequency_held_out"]]),
                "on": numbers([fact[column] for column in ON], 2),
                "classes": _class_rows(classes[latent]) if latent in classes else [],
                "nearest": nearest[latent],
                "relatives": elsewhere.get(latent, []),
                "cause": None if cause is None else _cause(cause, effects.get(latent, tables.effects.iloc[:0])),
            }
        about.append(entry)
    return about


def _by_latent(table: pd.DataFrame) -> dict[int, Any]:
    return dict(iter(table.groupby("latent"))) if len(table) else {}


def _pictures(
    rows: pd.DataFrame, lit: Mapping[tuple[int, int], tuple[np.ndarray, np.ndarray]], latent: int, columns: int
) -> dict[str, Any]:
    """Returns the panels, each a list of image, activation and strongest patch (-1: none), and where it fires.

    counts, patches, values: as in `_on_images`, of the panels' images in order but for the silent ones; scale: the
    largest activation.
    """
    rows = rows.sort_values(["panel", "rank"], key=lambda c: c.map(PANELS.index) if c.name == "panel" else c)
    patch = np.where(rows["token_row"] < 0, -1, rows["token_row"] * columns + rows["token_col"])
    cells = zip(rows["panel"], rows["image_id"].tolist(), numbers(rows["activation"]), patch.tolist(), strict=True)
    panels: dict[str, list] = {panel: [] for panel in PANELS}
    for panel, *cell in cells:
        panels[panel].append(cell)
    nothing = np.empty(0, np.int64), np.empty(0, np.float32)
    places = [lit.get((latent, image), nothing) for panel in PANELS[:-1] for image, *_ in panels[panel]]
    scale = float(rows["activation"].max())
    return {
        "panels": panels,
        "scale": number(scale, 4),
        "counts": pack([len(patches) for patches, _values in places], "u2"),
        "patches": pack(np.concatenate([patches for patches, _values in places]), "u2"),
        "values": pack(_levels(np.concatenate([values for _patches, values in places]), scale), "u1"),
    }


def _shown(classes: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows that are shown of each latent, the tested first, with exact intervals of the held-out shares."""
    order = np.lexsort((-classes["mcc"], classes["q"].isna(), classes["latent"]))
    rows = classes.iloc[order].groupby("latent", sort=False).head(_CLASSES)
    for name, of in (("precision", "flagged"), ("recall", "support")):
        low, high = interval(rows["right_held_out"], rows[f"{of}_held_out"])
        rows = rows.assign(**{f"{name}_low": low, f"{name}_high": high})
    return rows


def interval(hits: Any, n: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the exact 95 % interval of shares hits / n (Clopper & Pearson 1934); NaN for n = 0."""
    hits, n = np.asarray(hits, float), np.asarray(n, float)
    low, high = stats.beta.ppf(0.025, hits, n - hits + 1), stats.beta.ppf(0.975, hits + 1, n - hits)
    low, high = np.where(hits == 0, 0, low), np.where(hits == n, 1, high)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def _class_rows(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the classes of one latent, each split's counts apart."""
    counts, scores = ["support", "flagged", "right"], ["auroc", "mcc", "score"]
    return [
        {
            "attribute": row["attribute"],
            "name": row["name"],
            "q": number(row["q"], 2),
            "confirmed": bool(row["confirmed"]),
            "train": numbers([row[c] for c in counts + scores]),
            "held_out": numbers([row[f"{c}_held_out"] for c in counts + scores]),
            "precision": numbers([row["precision_low"], row["precision_high"]], 2),
            "recall": numbers([row["recall_low"], row["recall_high"]], 2),
        }
        for row in rows.to_dict("records")
    ]


def _names(rows: pd.DataFrame) -> list[str]:
    """Returns what classes are called; two of an attribute that are called the same, as ImageNet's cranes, by both."""
    names = rows["class"].astype(str).map(images.describe)
    kinds = rows[["attribute", "class"]].assign(name=names).drop_duplicates()
    twice = kinds[kinds.duplicated(["attribute", "name"], keep=False)].set_index(["attribute", "class"]).index
    keys = zip(rows["attribute"], rows["class"], strict=True)
    return [f"{name} ({key[1]})" if key in twice else name for name, key in zip(names, keys, strict=True)]


def _cause(cause: pd.Series, effects: pd.DataFrame) -> dict[str, Any]:
    """Returns what taking a latent out, and steering with it, do to the ViT's output and the classes it moves most."""
    strongest = effects.sort_values("effect", key=abs, ascending=False, kind="stable")
    rows = strongest.groupby("kind", sort=False).head(_MOVED).sort_values("effect", ascending=False, kind="stable")
    return {
        "measure": cause["measure"],
        "images": int(cause["images"]),
        "size": numbers([cause[c] for c in ("size", "size_control", "size_steered")]),
        "p": number(cause["p"], 2),
        "effects": [
            [row["kind"], row["attribute"], name, number(row["effect"]), number(row["se"])]
            for row, name in zip(rows.to_dict("records"), _names(rows), strict=True)
        ],
    }
