"""The explorer's data of one grid point: its latents, and the latents that fire on each image."""

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
from sae.evidence import classes
from sae.evidence.attribution import Attributions
from sae.explorer import class_pages, parts, relatives, words
from sae.explorer.parts import number, numbers, pack
from sae.files import whole
from sae.geometry import Geometry
from sae.latent_codes import Codes

LATENTS_PER_FILE = 32
IMAGES_PER_FILE = 16
PER_PATCH, PER_IMAGE = 6, 24  # the strongest latents that are kept of each token, and everywhere of each image
_AT_ONCE = 256  # images looked up together
_CLASSES, _MOVED = 5, 8  # how many classes are shown of a latent, and how many of each of its effects
_PANELS = tuple(words.PANELS)


@dataclass(frozen=True)
class Tables:
    """Tables about the latents of one grid point, as in docs/data.md.

    across_ks: of this layer, method and seed; across_layers and edges: of this k, method and seed; empty where the grid
    has one k or one layer.
    """

    latents: pd.DataFrame
    images: pd.DataFrame
    classes: pd.DataFrame
    best_latents: pd.DataFrame
    monosemanticity: pd.DataFrame
    interventions: pd.DataFrame
    effects: pd.DataFrame
    attributions: pd.DataFrame
    localisation: pd.DataFrame
    across_ks: pd.DataFrame
    across_layers: pd.DataFrame
    edges: pd.DataFrame


@dataclass(frozen=True)
class Point:
    """One SAE as the explorer shows it.

    Attributes:
        where: layer, k, method and seed.
        tokens: which tokens it reads: patches, class or all.
        geometry: of the ViT.
        codes: of the SAE, with the tokens of all images to be shown.
        decoder: W_dec [F, d].
        tables: about its latents.
        sample: ids of the images whose predictions were explained, int64 [m].
        estimates: the estimated effects of the latents on these predictions.
        names: the classes of the ViT's head, by group.
        seeds: of the grid; counterparts in other seeds have a name but no link.
    """

    where: Mapping[str, Any]
    tokens: str
    geometry: Geometry
    codes: Codes
    decoder: np.ndarray
    tables: Tables
    sample: np.ndarray
    estimates: Attributions
    names: Mapping[str, Sequence[str]]
    seeds: Sequence[int]


def write(folder: Path, point: Point, manifest: pd.DataFrame, opened: np.ndarray) -> None:
    """Writes all parts of one SAE into `folder`, which ends in layer=L/k=K/method=M/seed=S.

    table: all latents, by column. latents/N: the pictures and tables of each, 32 to a file. images/N: the latents that
    fire on each of the images that can be opened, 16 to a file. classes/N: the latents of each class, 16 to a file.

    Args:
        manifest: of all images.
        opened: ids of the images that can be opened.
    """
    name = "/".join(f"{key}={point.where[key]}" for key in ("layer", "k", "method", "seed"))
    tables = point.tables
    shown = tables.images[tables.images["panel"] != "silent"]
    lit, on_images = _fire(point, shown, opened)
    for image, told in _explained(point, opened).items():
        on_images[image] |= told
    best = classes.best_classes(tables.classes)
    confirmed = classes.best_classes(tables.classes[tables.classes["confirmed"].astype(bool)])
    values: dict[str, Any] = {"table": _table(tables, best)}
    known = class_pages.listed(manifest)
    chosen = tables.classes, tables.best_latents, tables.attributions, tables.localisation
    series = {
        "latents": (_latents(point, best, confirmed, known, lit), LATENTS_PER_FILE),
        "images": ([on_images[image] for image in opened], IMAGES_PER_FILE),
        "classes": (
            class_pages.entries(known, *chosen, point.codes, manifest, opened),
            class_pages.CLASSES_PER_FILE,
        ),
    }
    for name_of, (entries, size) in series.items():
        for first in range(0, len(entries), size):
            values[f"{name_of}/{first // size:04d}"] = entries[first : first + size]
    with whole(folder) as part:
        for sub_folder in series:
            (part / sub_folder).mkdir(parents=True)
        for place, value in values.items():
            (part / f"{place}.js").write_text(parts.script(f"{name}/{place}", value))


def openable(manifest: pd.DataFrame, most: int) -> pd.DataFrame:
    """Returns the manifest's rows of the images that can be opened, in the order of their ids."""
    return images.sample(images.used(manifest), most)


def _fire(
    point: Point, shown: pd.DataFrame, opened: np.ndarray
) -> tuple[dict[tuple[int, int], tuple[np.ndarray, np.ndarray]], dict[int, dict[str, Any]]]:
    """Looks up where latents fire.

    Returns:
        (latent, image) -> patches on which it fires and its activations there, for the rows of `shown` (latent,
        image_id); and image -> the latents that fire on it.
    """
    prefix = sum(role != "patch" for role in point.geometry.roles[point.geometry.select(point.tokens)])
    ids = np.union1d(shown["image_id"].unique(), opened)
    wanted = {image: rows.to_numpy() for image, rows in shown.groupby("image_id")["latent"]}
    lit: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    on_images: dict[int, dict[str, Any]] = {}
    for first in tqdm(range(0, len(ids), _AT_ONCE), desc="explorer", unit=f"{_AT_ONCE} images"):
        codes = point.codes.of(ids[first : first + _AT_ONCE])
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
    return lit, on_images


def _explained(point: Point, opened: np.ndarray) -> dict[int, dict[str, Any]]:
    """Returns the predictions for the images of the sample, and the largest estimated effect of their latents on them.

    predicted: the names of the predicted classes. effects: for the listed latents of `_on_images`, in their order, the
    place of the prediction and the effect.
    """
    codes, found = point.codes.of(point.sample), {}
    assert codes.images is not None
    if not point.estimates.effects.shape[1]:
        return {}
    groups = list(point.names) or ["output"]
    for place, image in enumerate(point.sample.tolist()):
        if image not in opened:
            continue
        entries = slice(*codes.images.indptr[place : place + 2])
        order = np.lexsort((codes.images.indices[entries], -codes.images.data[entries]))[:PER_IMAGE]
        effects = point.estimates.effects[entries][order]
        largest = abs(effects).argmax(1)
        told = []
        for group, best in zip(groups, point.estimates.predicted[place].tolist(), strict=True):
            name = images.describe(str(point.names[group][best])) if point.names else str(best)
            told.append(name if group in ("label", "output") else f"{group}: {name}")
        values = numbers(effects[np.arange(len(effects)), largest], 2)
        pairs = [[int(group), value] for group, value in zip(largest, values, strict=True)]
        found[image] = {"predicted": told, "effects": pairs}
    return found


def _runs(*keys: np.ndarray) -> list[slice]:
    """Returns the places of equal keys in sorted arrays."""
    return [slice(a, b) for a, b in pairwise([*classes.firsts(*keys), len(keys[0])])]


def _on_images(codes: Codes, wanted: np.ndarray) -> dict[int, dict[str, Any]]:
    """Returns of the wanted images of a block: for each, its strongest latents first, where they fire.

    scale: the largest activation on the image. latents: by falling strength; the first `everywhere` with all the tokens
    on which they fire, the others where they are among the strongest of a token. counts: how many of tokens and values
    belong to each. values: activations in 1/255 of the scale, at least 1. strongest: of the first `everywhere`.
    """
    assert codes.images is not None  # the page shows ranked dictionaries
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
    """Returns activations in steps of 1/255 of the scale; activations above 0 become at least 1."""
    return np.clip(np.rint(values * (255 / scale)) if scale else values, 1, 255)


def _table(tables: Tables, best: pd.DataFrame) -> dict[str, Any]:
    """Returns the columns of `words.COLUMNS`, an entry per latent; classes by their place in `names`."""
    latents, n = tables.latents, len(tables.latents)
    known = best[best["confirmed"].astype(bool)]
    named = known["attribute"].where(known["attribute"] != "label", "").astype(str)
    text = named.where(named == "", named + ": ") + known["name"].astype(str)
    kinds = pd.Categorical(text.reindex(range(n)))
    effect = latents["estimated_effect"] / latents["estimated_control"].where(latents["estimated_control"] > 0)
    token_types = pd.Categorical(latents["token_type"].replace("", None))
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
        "monosemanticity": numbers(tables.monosemanticity["monosemanticity"]),
        "coherence": numbers(latents["coherence"]),
        "effect": numbers(effect),
        "token_types": token_types.categories.tolist(),
        "token_type": token_types.codes.tolist(),
    }


def _latents(
    point: Point,
    best: pd.DataFrame,
    confirmed: pd.DataFrame,
    listed: pd.DataFrame,
    lit: Mapping[tuple[int, int], tuple[np.ndarray, np.ndarray]],
) -> list[dict[str, Any]]:
    """Returns the page's entry of each latent."""
    tables = point.tables
    places = {key: i for i, key in enumerate(zip(listed["attribute"], listed["class"], strict=True))}
    pictures, classes = _by_latent(tables.images), _by_latent(_shown(tables.classes))
    effects = dict(iter(tables.effects.groupby("latent"))) if len(tables.effects) else {}
    estimated = _by_latent(tables.attributions.assign(name=_names(tables.attributions)))
    known = [table.to_dict("index") for table in (best, confirmed, tables.interventions.set_index("latent"))]
    nearest = relatives.nearest(point.decoder, (tables.latents["status"] == "alive").to_numpy())
    causes = relatives.edges(tables.edges, point.where["layer"])
    elsewhere = relatives.relatives(tables.latents, tables.across_ks, tables.across_layers, point.where, point.seeds)
    about, nothing = [], tables.effects.iloc[:0]
    pairs = zip(tables.latents.to_dict("records"), tables.monosemanticity.to_dict("records"), strict=True)
    for fact, score in pairs:
        latent = fact["latent"]
        of_class, other, effect = (rows.get(latent) for rows in known)
        entry: dict[str, Any] = {
            "headline": words.headline(fact, of_class, other),
            "checks": words.checks(fact, of_class, score, effect),
        }
        if fact["status"] != "dead":
            entry |= _pictures(pictures[latent], lit, point.geometry.patches[1])
            entry |= {
                "histogram": np.asarray(fact["histogram"]).tolist(),
                "mean": number(fact["mean_activation"]),
                "density": numbers([fact["frequency"], fact["frequency_held_out"]]),
                "on": numbers([fact[column] for column in words.ON], 2),
                "classes": _class_rows(classes[latent], places) if latent in classes else [],
                "nearest": nearest[latent],
                "relatives": elsewhere.get(latent, []),
                "edges": causes.get(latent, []),
                "estimated": _estimates(estimated.get(latent, [])),
                "intervention": None if effect is None else _effect(effect, effects.get(latent, nothing)),
            }
        about.append(entry)
    return about


def _by_latent(table: pd.DataFrame) -> dict[int, list[dict[str, Any]]]:
    """Returns the rows of each latent in their order, as plain dicts: slices of a table take much longer."""
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in table.to_dict("records"):
        rows.setdefault(row["latent"], []).append(row)
    return rows


def _pictures(
    rows: list[dict[str, Any]], lit: Mapping[tuple[int, int], tuple[np.ndarray, np.ndarray]], columns: int
) -> dict[str, Any]:
    """Returns the panels, each a list of image, activation and strongest patch (-1: none), and where it fires.

    counts, patches, values: as in `_on_images`, of the panels' images in order but for the silent ones; scale: the
    largest activation.
    """
    panels: dict[str, list] = {panel: [] for panel in _PANELS}
    for row in sorted(rows, key=lambda row: row["rank"]):
        patch = -1 if row["token_row"] < 0 else row["token_row"] * columns + row["token_col"]
        panels[row["panel"]].append([row["image_id"], number(row["activation"]), patch])
    nothing = np.empty(0, np.int64), np.empty(0, np.float32)
    places = [lit.get((rows[0]["latent"], image), nothing) for panel in _PANELS[:-1] for image, *_ in panels[panel]]
    scale = float(max(row["activation"] for row in rows))
    return {
        "panels": panels,
        "scale": number(scale, 4),
        "counts": pack([len(patches) for patches, _values in places], "u2"),
        "patches": pack(np.concatenate([patches for patches, _values in places]), "u2"),
        "values": pack(_levels(np.concatenate([values for _patches, values in places]), scale), "u1"),
    }


def _shown(classes: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows to show for each latent, tested classes first, with exact intervals of the held-out shares."""
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


def _class_rows(rows: list[dict[str, Any]], places: Mapping[tuple[str, str], int]) -> list[dict[str, Any]]:
    """Returns the classes of one latent, with the counts of each split; place: among all classes."""
    counts, scores = ["support", "flagged", "right"], ["auroc", "mcc", "score"]
    return [
        {
            "attribute": row["attribute"],
            "name": row["name"],
            "place": places[row["attribute"], str(row["class"])],
            "q": number(row["q"], 2),
            "confirmed": bool(row["confirmed"]),
            "train": numbers([row[c] for c in counts + scores]),
            "held_out": numbers([row[f"{c}_held_out"] for c in counts + scores]),
            "precision": numbers([row["precision_low"], row["precision_high"]], 2),
            "recall": numbers([row["recall_low"], row["recall_high"]], 2),
        }
        for row in rows
    ]


def _names(rows: pd.DataFrame) -> list[str]:
    """Returns the names of classes; classes of an attribute with equal names, such as ImageNet's cranes, get both."""
    names = rows["class"].astype(str).map(images.describe)
    kinds = rows[["attribute", "class"]].assign(name=names).drop_duplicates()
    twice = kinds[kinds.duplicated(["attribute", "name"], keep=False)].set_index(["attribute", "class"]).index
    keys = zip(rows["attribute"], rows["class"], strict=True)
    return [f"{name} ({key[1]})" if key in twice else name for name, key in zip(names, keys, strict=True)]


def _estimates(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """Returns the estimated effects of a latent on classes: attribute, name, effect, control, active, images."""
    keys = ("effect", "control", "active", "images")
    return [[row["attribute"], row["name"], *numbers([row[key] for key in keys])] for row in rows]


def _effect(intervention: Mapping[str, Any], effects: pd.DataFrame) -> dict[str, Any]:
    """Returns the changes of the ViT's output by ablation and steering, and the largest effects on classes."""
    strongest = effects.sort_values("effect", key=abs, ascending=False, kind="stable")
    rows = strongest.groupby("kind", sort=False).head(_MOVED).sort_values("effect", ascending=False, kind="stable")
    return {
        "measure": intervention["measure"],
        "images": int(intervention["images"]),
        "size": numbers([intervention[c] for c in ("size", "size_control", "size_steered")]),
        "p": number(intervention["p"], 2),
        "effects": [
            [row["kind"], row["attribute"], name, number(row["effect"]), number(row["se"])]
            for row, name in zip(rows.to_dict("records"), _names(rows), strict=True)
        ],
    }
