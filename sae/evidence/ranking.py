"""Which images, patches and classes turn a latent on, and which do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from tqdm import tqdm

from sae.activations import Activations
from sae.autoencoder import SparseAutoencoder
from sae.codes import stream
from sae.evidence import classes
from sae.evidence.token_types import Roles
from sae.geometry import Geometry
from sae.images import HELD_OUT

# Edges of the activation histograms: 24 bins, a factor of √2 each, outer bins open. Latents of a standardised SAE
# fire at about 0.1 to 30.
HISTOGRAM_EDGES = 2.0 ** np.arange(-6, 6.01, 0.5)
TOP, SILENT = "top", "silent"
QUARTILES = {"q75": 0.75, "q50": 0.5, "q25": 0.25}
_PER_PANEL = 4  # images around each quartile, and images on which the latent is silent


@dataclass(frozen=True)
class Ranking:
    """Four tables; docs/data.md describes every column. activations: the strongest on each image, [n, F]."""

    latents: pd.DataFrame
    images: pd.DataFrame
    classes: pd.DataFrame
    recovery: pd.DataFrame
    activations: sparse.csr_array


def rank(
    sae: SparseAutoencoder,
    x: Activations,
    manifest: pd.DataFrame,
    grid: Geometry,
    median_norm: float,
    top: int = 16,
    top_classes: int = 10,
    support: int = 5,
) -> Ranking:
    """Ranks images and classes for every latent in one pass over the tokens.

    An image counts by its strongest token alone: one patch per image, the first one where several are equally strong.
    Images of equal activation are ordered by id; of near duplicates (the manifest's `group`) only the strongest is
    kept. Beside the strongest images stand some around the quartiles of a latent's activation over the images on which
    it fires, and some on which it is silent, drawn at random: the maxima alone make every latent look clear.

    Args:
        x: the SAE's tokens of all used images, both splits.
        manifest: with a row for each of these images.
        grid: the model's geometry.
        median_norm: of the layer's patch tokens, see `Roles`.
        top: images kept per latent.
        top_classes: classes kept per latent and attribute.
        support: see `classes.pairs`.
    """
    rows = manifest.set_index("id").loc[x.ids]
    train = (rows["split"] != HELD_OUT).to_numpy()
    chosen, latents, bins = grid.select(sae.settings.tokens), sae.settings.latents, len(HISTOGRAM_EDGES) - 1
    roles = Roles(latents, grid.roles[chosen], grid, median_norm)
    fired, total = np.zeros((2, latents), np.int64), np.zeros(latents)  # tokens by split: held out, train
    histogram = np.zeros(latents * bins, np.int64)
    strongest, places, first = [], [], 0
    with tqdm(total=len(x), desc="ranking", unit="image") as progress:
        for codes in stream(sae, x):
            roles.add(codes)
            strongest.append(codes.images)
            places.append(codes.places)
            row, latent, value = codes.entries()
            seen = train[first + row // codes.tokens]
            for split in (0, 1):
                fired[split] += np.bincount(latent[seen == split], minlength=latents)
            total += np.bincount(latent, value, latents)
            place = latent.astype(np.int64) * bins + np.digitize(value, HISTOGRAM_EDGES[1:-1])
            histogram += np.bincount(place, minlength=latents * bins)
            first += len(codes.ids)
            progress.update(len(codes.ids))
    activations, places = sparse.vstack(strongest, format="csr"), sparse.vstack(places, format="csr")

    counts, tokens = fired.sum(0), np.array([(~train).sum(), train.sum()]) * x.tokens
    alive = counts > 0
    of_images = activations.tocsc()
    table = pd.DataFrame(
        {
            "latent": np.arange(latents),
            "status": np.where(alive, "alive", "dead"),
            "frequency": fired[1] / max(tokens[1], 1),
            "frequency_held_out": fired[0] / max(tokens[0], 1),
            "image_frequency": np.diff(of_images.indptr) / len(x),
            "mean_activation": np.where(alive, total / np.maximum(counts, 1), np.nan),
            "max_activation": np.where(alive, activations.max(axis=0).toarray(), np.nan),
            "histogram": list(histogram.reshape(latents, bins)),
        }
    )
    table = table.join(roles.table())
    pairs = classes.pairs(activations, classes.attributes(rows), train, support)
    ranked = classes.ranked(pairs, top_classes)
    images = _panels(of_images, places.tocsc(), rows["group"].to_numpy(), top)
    images = _described(images, x.ids, chosen.indices(len(grid.roles))[0], grid, rows)
    return Ranking(classes.named(table, ranked), images, ranked, classes.recovery(pairs), activations)


def _panels(activations: sparse.csc_array, places: sparse.csc_array, group: np.ndarray, top: int) -> pd.DataFrame:
    """Returns latent, panel, rank, place of the image, activation, place of the token (-1 where silent)."""
    n, parts = activations.shape[0], []
    for latent in range(activations.shape[1]):
        here = slice(activations.indptr[latent], activations.indptr[latent + 1])
        image, value, token = activations.indices[here], activations.data[here], places.data[here]
        if not len(image):
            continue
        order = np.lexsort((image, -value))
        _groups, first = np.unique(group[image[order]], return_index=True)
        order = order[np.sort(first)]  # of near duplicates the strongest
        panels = {TOP: order[:top]}
        for name, quantile in QUARTILES.items():
            middle = round((1 - quantile) * (len(order) - 1))
            start = min(max(0, middle - _PER_PANEL // 2), max(0, len(order) - _PER_PANEL))
            panels[name] = order[start : start + _PER_PANEL]
        for name, chosen in panels.items():
            parts.append((latent, name, image[chosen], value[chosen], token[chosen]))
        silent = np.random.default_rng(latent).permutation(np.setdiff1d(np.arange(n), image))[:_PER_PANEL]
        parts.append((latent, SILENT, silent, np.zeros(len(silent)), np.full(len(silent), -1)))
    lengths = [len(part[2]) for part in parts]
    columns = {"latent": np.repeat(np.array([part[0] for part in parts], np.int64), lengths)}
    columns["panel"] = np.repeat(np.array([part[1] for part in parts], object), lengths)
    columns["rank"] = np.concatenate([np.arange(1, n + 1) for n in lengths] or [np.empty(0, np.int64)])
    for column, name in enumerate(("image", "activation", "token"), 2):
        columns[name] = np.concatenate([part[column] for part in parts] or [np.empty(0)])
    return pd.DataFrame(columns)


def _described(images: pd.DataFrame, ids: np.ndarray, first: int, grid: Geometry, rows: pd.DataFrame) -> pd.DataFrame:
    """Replaces places by image ids and patch rows and columns; adds the split."""
    token = images["token"].to_numpy(np.int64)
    row, column = grid.position(token + first)
    image = images["image"].to_numpy(np.int64)
    table = images[["latent", "panel", "rank"]].assign(image_id=ids[image], activation=images["activation"])
    return table.assign(
        token_row=np.where(token < 0, -1, row),
        token_col=np.where(token < 0, -1, column),
        split=rows["split"].to_numpy()[image],
    )


@torch.inference_mode()
def heat_maps(
    sae: SparseAutoencoder, x: Activations, wanted: dict[int, list[int]], grid: Geometry
) -> dict[tuple[int, int], np.ndarray]:
    """Returns (latent, image id) -> the latent's activation on each patch, float32 [rows, columns].

    Args:
        x: the SAE's tokens, holding at least the wanted images.
        wanted: image id -> the latents to look at there.
    """
    patches = grid.grid[0] * grid.grid[1]
    if x.tokens < patches:  # only the class token was encoded: there is no map to draw
        return {}
    place = {int(image): index for index, image in enumerate(x.ids)}
    maps = {}
    for image, latents in wanted.items():
        tokens = torch.from_numpy(x.read(np.array([place[image]]))[0]).to(sae.b_dec.device).float()
        z = sae.encode(tokens)[-patches:, latents].cpu().numpy()
        for column, latent in enumerate(latents):
            maps[latent, image] = z[:, column].reshape(grid.grid)
    return maps
