"""The explorer's data about classes: the latents of one SAE that find each class, or move the prediction of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sae import images
from sae.evidence import classes
from sae.explorer.parts import number, numbers
from sae.latent_codes import Codes

CLASSES_PER_FILE = 16
_LATENTS, _SHOWN, _ALSO = 6, 8, 3  # how many latents, images and further classes of a latent are shown


def listed(manifest: pd.DataFrame) -> pd.DataFrame:
    """Returns all classes of the used images: attribute, class, name, images, held_out. A row's place is its number."""
    rows = images.used(manifest)
    held_out = (rows["split"] == images.HELD_OUT).to_numpy()
    parts = []
    for attribute, values in classes.attributes(rows).items():
        values = values.remove_unused_categories()
        counts = np.bincount(values.codes[values.codes >= 0], minlength=len(values.categories))
        shown = values.codes[held_out & (values.codes >= 0)]
        table = pd.DataFrame({"attribute": attribute, "class": values.categories.astype(str), "images": counts})
        parts.append(table.assign(held_out=np.bincount(shown, minlength=len(counts))))
    empty = pd.DataFrame(columns=["attribute", "class", "images", "held_out"])
    table = pd.concat([empty, *parts], ignore_index=True)
    return table.assign(name=table["class"].map(images.describe))


def menu(manifest: pd.DataFrame) -> list[list[Any]]:
    """Returns `listed` for the page: attribute, name, images and held_out of each class."""
    return listed(manifest)[["attribute", "name", "images", "held_out"]].to_numpy().tolist()


def entries(
    known: pd.DataFrame,
    ranked: pd.DataFrame,
    best: pd.DataFrame,
    attributions: pd.DataFrame,
    localisation: pd.DataFrame,
    codes: Codes,
    manifest: pd.DataFrame,
    opened: np.ndarray,
) -> list[dict[str, Any]]:
    """Returns the page's entry of each class of `listed`.

    latents: the most selective ones: latent, MCC on held-out images, confirmed, precision, recall, and the names of
    other classes that are confirmed for it. effects: the latents with the largest estimated effects on the ViT's
    prediction of the class: latent, effect, control, active, images. best: the latent with the highest F1 on train
    images, its F1 on held-out and on train images, and the held-out images of the class that it flags and misses, as
    many as are shown. pointing: how often its strongest patch shows the object, and the chance of it; null if unknown.

    Args:
        known: from `listed`.
        ranked, best, attributions, localisation: tables of docs/data.md.
        codes: of the ranked images.
        opened: ids of the images that can be opened.
    """
    assert codes.images is not None and codes.image_ids is not None
    confirmed = ranked[ranked["confirmed"].astype(bool)].sort_values("mcc", ascending=False, kind="stable")
    others = {latent: rows for latent, rows in confirmed.groupby("latent")}
    # First the key: an empty table would take the rows of a column that it is given.
    tested = ranked.assign(key=_keys(ranked)).loc[ranked["q"].notna()].sort_values("mcc_held_out", ascending=False)
    by_class = {key: rows.head(_LATENTS) for key, rows in tested.groupby("key")}
    moved = attributions.assign(key=_keys(attributions)).sort_values("effect", ascending=False)
    by_effect = {key: rows.head(_LATENTS) for key, rows in moved[moved["effect"] > 0].groupby("key")}
    finest = best.assign(key=_keys(best)).set_index("key").to_dict("index")
    located = localisation.assign(key=_keys(localisation)).set_index("key").to_dict("index")
    place = pd.Index(manifest["id"]).get_indexer(codes.image_ids)
    rows = manifest.iloc[place].reset_index(drop=True)
    shown = ((rows["split"] == images.HELD_OUT) & rows["id"].isin(opened)).to_numpy()
    by_latent, found = codes.images.tocsc(), []
    for key, of in zip(_keys(known), known.to_dict("records"), strict=True):
        # The head names a class by the last part of a label, as `splice.targets` does.
        head = of["attribute"], of["class"].split("/")[-1]
        entry: dict[str, Any] = {
            "latents": [_selective(row, others, of) for row in by_class.get(key, ranked[:0]).to_dict("records")],
            "effects": [
                [row["latent"], *numbers([row[c] for c in ("effect", "control", "active", "images")])]
                for row in by_effect.get(head, ranked[:0]).to_dict("records")
            ],
            "best": None,
            "pointing": None,
        }
        if key in finest:
            latent = finest[key]["latent"]
            flagged = np.zeros(len(rows), bool)
            column = slice(*by_latent.indptr[latent : latent + 2])
            flagged[by_latent.indices[column]] = by_latent.data[column] >= finest[key]["threshold"]
            here = shown & (rows[of["attribute"]].astype(str) == of["class"]).to_numpy()
            split = here & flagged, here & ~flagged
            pictures = [rows["id"][np.flatnonzero(part)[:_SHOWN]].tolist() for part in split]
            scores = [number(finest[key][column]) for column in ("f1_held_out", "f1")]
            entry["best"] = [latent, *scores, *pictures]
        if key in located:
            entry["pointing"] = numbers([located[key]["pointing"], located[key]["pointing_chance"]])
        found.append(entry)
    return found


def _selective(row: dict[str, Any], others: dict[int, pd.DataFrame], of: dict[str, Any]) -> list[Any]:
    also: Sequence[str] = ()
    if row["latent"] in others:
        rows = others[row["latent"]]
        rows = rows[(rows["attribute"] != of["attribute"]) | (rows["class"].astype(str) != of["class"])].head(_ALSO)
        kinds = zip(rows["attribute"], rows["class"].astype(str).map(images.describe), strict=True)
        also = [name if attribute == "label" else f"{attribute}: {name}" for attribute, name in kinds]
    values = numbers([row[f"{c}_held_out"] for c in ("mcc", "precision", "recall")])
    return [row["latent"], values[0], bool(row["confirmed"]), *values[1:], list(also)]


def _keys(table: pd.DataFrame) -> pd.Series:
    """Returns attribute and class of each row, as a pair."""
    if not len(table):
        return pd.Series([], dtype=object)
    return pd.Series(list(zip(table["attribute"], table["class"].astype(str), strict=True)), table.index, object)
