"""The ranking: the images, patches and classes of each latent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from sae.evidence import classes, token_types
from sae.geometry import Geometry
from sae.images import HELD_OUT
from sae.latent_codes import Codes

TOP, SILENT = "top", "silent"
QUARTILES = {"q75": 0.75, "q50": 0.5, "q25": 0.25}
_PER_PANEL = 4  # images around each quartile, and images on which the latent is silent


@dataclass(frozen=True)
class Ranking:
    """Tables about the latents of one dictionary; docs/data.md describes every column."""

    latents: pd.DataFrame
    images: pd.DataFrame
    classes: pd.DataFrame
    best_latents: pd.DataFrame


def rank(
    codes: Codes,
    manifest: pd.DataFrame,
    geometry: Geometry,
    selected: slice,
    top: int = 16,
    top_classes: int = 10,
    support: int = 5,
) -> Ranking:
    """Ranks images and classes for every latent.

    An image counts by its strongest token alone; of equally strong tokens, the first counts. Images of equal activation
    are ordered by id. Only the strongest of near duplicates (the manifest's `group`) is kept. The tables also hold
    images around the quartiles of the activation over the images on which the latent fires, and random images on which
    it is silent: the strongest images alone make every latent look clear.

    Args:
        codes: of the dictionary, with its tally.
        manifest: with a row for each of the ranked images.
        geometry: of the ViT.
        selected: which of its tokens the dictionary reads.
        top: images kept per latent.
        top_classes: classes kept per latent and attribute.
        support: see `classes.pairs`.
    """
    tally, latents, ids = codes.tally, codes.latents, codes.image_ids
    assert tally is not None and ids is not None and codes.images is not None and codes.places is not None
    rows = manifest.set_index("id").loc[ids]
    train = (rows["split"] != HELD_OUT).to_numpy()
    counts = tally.fired.sum(0)
    alive = counts > 0
    by_latent = codes.images.tocsc()
    held_out, seen = tally.fired / np.maximum(tally.rows, 1)[:, None]
    table = pd.DataFrame(
        {
            "latent": np.arange(latents),
            "status": np.where(alive, "alive", "dead"),
            "frequency": seen,
            "frequency_held_out": held_out,
            "image_frequency": np.diff(by_latent.indptr) / len(ids),
            "mean_activation": np.where(alive, tally.total / np.maximum(counts, 1), np.nan),
            "max_activation": np.where(alive, codes.images.max(axis=0).toarray(), np.nan),
            "histogram": list(tally.histogram),
        }
    )
    table = table.join(token_types.table(tally, geometry.roles[selected], geometry.patches))
    pairs = classes.pairs(codes.images, classes.attributes(rows), train, support)
    ranked = classes.ranked(pairs, top_classes)
    images = _panels(by_latent, codes.places.tocsc(), rows["group"].to_numpy(), top)
    images = _described(images, ids, selected.indices(len(geometry.roles))[0], geometry, rows)
    return Ranking(classes.named(table, ranked), images, ranked, classes.best_latents(pairs))


def _panels(activations: sparse.csc_array, places: sparse.csc_array, group: np.ndarray, top: int) -> pd.DataFrame:
    """Returns latent, panel, rank, place of the image, activation, place of the token (-1 where silent)."""
    n, parts, silent = activations.shape[0], [], np.ones(activations.shape[0], bool)
    alike = len(np.unique(group)) < n
    for latent in range(activations.shape[1]):
        here = slice(activations.indptr[latent], activations.indptr[latent + 1])
        image, value, token = activations.indices[here], activations.data[here], places.data[here]
        if not len(image):
            continue
        order = np.lexsort((image, -value))
        if alike:
            _groups, first = np.unique(group[image[order]], return_index=True)
            order = order[np.sort(first)]  # of near duplicates the strongest
        panels = {TOP: order[:top]}
        for name, quantile in QUARTILES.items():
            middle = round((1 - quantile) * (len(order) - 1))
            start = min(max(0, middle - _PER_PANEL // 2), max(0, len(order) - _PER_PANEL))
            panels[name] = order[start : start + _PER_PANEL]
        for name, chosen in panels.items():
            parts.append((latent, name, image[chosen], value[chosen], token[chosen]))
        silent[image] = False
        drawn = np.random.default_rng(latent).permutation(np.flatnonzero(silent))[:_PER_PANEL]
        silent[image] = True
        parts.append((latent, SILENT, drawn, np.zeros(len(drawn)), np.full(len(drawn), -1)))
    lengths = [len(part[2]) for part in parts]
    columns = {"latent": np.repeat(np.array([part[0] for part in parts], np.int64), lengths)}
    columns["panel"] = np.repeat(np.array([part[1] for part in parts], object), lengths)
    columns["rank"] = np.concatenate([np.arange(1, n + 1) for n in lengths] or [np.empty(0, np.int64)])
    for column, name in enumerate(("image", "activation", "token"), 2):
        columns[name] = np.concatenate([part[column] for part in parts] or [np.empty(0)])
    return pd.DataFrame(columns)


def _described(
    images: pd.DataFrame, ids: np.ndarray, first: int, geometry: Geometry, rows: pd.DataFrame
) -> pd.DataFrame:
    """Replaces places by image ids and patch rows and columns; adds the split."""
    token = images["token"].to_numpy(np.int64)
    row, column = geometry.position(token + first)
    image = images["image"].to_numpy(np.int64)
    table = images[["latent", "panel", "rank"]].assign(image_id=ids[image], activation=images["activation"])
    return table.assign(
        token_row=np.where(token < 0, -1, row),
        token_col=np.where(token < 0, -1, column),
        split=rows["split"].to_numpy()[image],
    )
