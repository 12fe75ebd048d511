"""Which images, patches and classes turn a latent on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from sae.activations import Activations
from sae.autoencoder import SparseAutoencoder
from sae.geometry import Geometry
from sae.images import COLUMNS, HELD_OUT, describe

# Edges of the activation histograms: 24 bins, a factor of √2 each, outer bins open. Latents of a standardised SAE
# fire at about 0.1 to 30.
HISTOGRAM_EDGES = 2.0 ** np.arange(-6, 6.01, 0.5)


@dataclass(frozen=True)
class Ranking:
    """Three tables; docs/data.md describes every column."""

    latents: pd.DataFrame
    images: pd.DataFrame
    classes: pd.DataFrame


def class_columns(manifest: pd.DataFrame) -> list[str]:
    """Returns the columns by which classes are ranked: the label, and attributes that group the images.

    A column that is (nearly) different for every image, such as a caption, groups nothing and is left out.
    """
    attributes = [c for c in manifest.columns if c not in COLUMNS]
    grouping = [c for c in attributes if 1 < manifest[c].nunique() <= manifest[c].notna().sum() / 2]
    return (["label"] if manifest["label"].notna().any() else []) + grouping


@torch.inference_mode()
def rank(
    sae: SparseAutoencoder,
    x: Activations,
    manifest: pd.DataFrame,
    grid: Geometry,
    top: int = 16,
    top_classes: int = 10,
) -> Ranking:
    """Ranks images and classes for every latent in one pass; memory does not grow with the number of images.

    An image counts by its strongest token alone: one patch per image, the first one where several are equally strong.
    Images of equal activation are ordered by id. A class's score is the mean over its images of that activation,
    zeros included. Classes are chosen on the train split, and scored on held-out images beside it. Images on which
    a latent is silent are never listed: a dead latent has no rows in `images` and `classes`.

    Args:
        x: the SAE's tokens of all used images, both splits.
        manifest: with a row for each of these images.
        grid: the model's geometry, for patch rows and columns.
        top: images kept per latent.
        top_classes: classes kept per latent and attribute.
    """
    device, latents = sae.b_dec.device, sae.settings.latents
    rows = manifest.set_index("id").loc[x.ids]
    held_out = torch.tensor((rows["split"] == HELD_OUT).to_numpy(bool))
    columns = class_columns(rows)
    classes = {c: pd.Categorical(rows[c]) for c in columns}
    sums = {c: torch.zeros(2, len(v.categories), latents, dtype=torch.float64) for c, v in classes.items()}

    best = torch.zeros(latents, 0, device=device)
    best_image = torch.zeros(latents, 0, dtype=torch.int64, device=device)
    best_token = torch.zeros(latents, 0, dtype=torch.int64, device=device)
    fired = torch.zeros(2, latents, dtype=torch.int64)  # tokens, per split
    fired_images = torch.zeros(2, latents, dtype=torch.int64)
    total = torch.zeros(latents, dtype=torch.float64)
    spread = torch.zeros(2, latents, dtype=torch.float64)  # Σ and Σ² of the train images' activations
    bins = len(HISTOGRAM_EDGES) - 1
    histogram = torch.zeros(latents * bins, dtype=torch.int64)
    inner_edges = torch.tensor(HISTOGRAM_EDGES[1:-1], dtype=torch.float32, device=device)

    per_block = max(1, 2**23 // (x.tokens * latents))
    first = 0
    with tqdm(total=len(x), desc="ranking", unit="image") as progress:
        for ids, block in x.blocks(per_block):
            n = len(ids)
            tokens = torch.from_numpy(block.reshape(-1, x.width)).to(device).float()
            values, indices = (part.reshape(n, -1) for part in sae.encode_sparse(tokens))
            activation = values.new_zeros(n, latents).scatter_reduce_(1, indices, values, "amax")
            # The first token at which each latent reaches its maximum: others are sent behind the last token.
            place = torch.arange(x.tokens, device=device).repeat_interleave(values.shape[1] // x.tokens).expand(n, -1)
            place = torch.where(values == activation.gather(1, indices), place, x.tokens)
            token = torch.full_like(activation, x.tokens, dtype=torch.int64).scatter_reduce_(1, indices, place, "amin")

            # Blocks come in the order of the ids and the sort is stable: of equal images the lower id stays in front.
            candidates = torch.cat([best, activation.T], 1)
            best, order = candidates.sort(dim=1, descending=True, stable=True)
            best, order = best[:, :top], order[:, :top]
            image = torch.from_numpy(ids).to(device).expand(latents, -1)
            best_image = torch.cat([best_image, image], 1).gather(1, order)
            best_token = torch.cat([best_token, token.T], 1).gather(1, order)

            here, on = held_out[first : first + n], values > 0
            cpu = activation.cpu().double()
            for split, part in enumerate((~here, here)):
                chosen = on & part.to(device)[:, None]
                fired[split] += torch.bincount(indices[chosen].cpu(), minlength=latents)
                fired_images[split] += (cpu[part] > 0).sum(0)
                for column, categories in classes.items():
                    code = torch.from_numpy(categories.codes[first : first + n].astype(np.int64))
                    known = part & (code >= 0)
                    sums[column][split].index_add_(0, code[known], cpu[known])
            seen = cpu[~here]
            spread += torch.stack([seen.sum(0), seen.square().sum(0)])
            total += torch.bincount(indices[on].cpu(), values[on].cpu().double(), minlength=latents)
            bin_of = torch.bucketize(values[on], inner_edges, right=True)
            histogram += torch.bincount((indices[on] * bins + bin_of).cpu(), minlength=latents * bins)
            first += n
            progress.update(n)

    images = _image_table(best, best_image, best_token, grid, sae.settings.tokens, rows)
    supports = {c: _supports(v, held_out) for c, v in classes.items()}
    mean, square = (spread / max(int((~held_out).sum()), 1)).numpy()
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    ranked = [_class_table(c, classes[c], sums[c], supports[c], mean, deviation, top_classes) for c in columns]
    empty = pd.DataFrame({c: pd.Series(dtype=t) for c, t in _CLASS_TYPES.items()})
    class_table = pd.concat([empty, *ranked] if ranked else [empty], ignore_index=True).astype(_CLASS_TYPES)
    class_table = class_table.sort_values(["latent", "attribute", "rank"], ignore_index=True, kind="stable")

    counts = fired.sum(0).numpy()
    split_tokens = np.array([(~held_out).sum(), held_out.sum()]) * x.tokens
    table = pd.DataFrame(
        {
            "latent": np.arange(latents),
            "status": np.where(counts > 0, "alive", "dead"),
            "frequency": fired[0].numpy() / max(split_tokens[0], 1),
            "frequency_held_out": fired[1].numpy() / max(split_tokens[1], 1),
            "image_frequency": fired_images.sum(0).numpy() / len(x),
            "mean_activation": np.where(counts > 0, total.numpy() / np.maximum(counts, 1), np.nan),
            "max_activation": np.where(counts > 0, best[:, 0].cpu().numpy() if best.shape[1] else 0, np.nan),
            "histogram": list(histogram.reshape(latents, bins).numpy()),
        }
    )
    return Ranking(_with_top_class(table, class_table), images, class_table)


def _image_table(
    best: torch.Tensor, image: torch.Tensor, token: torch.Tensor, grid: Geometry, tokens: str, rows: pd.DataFrame
) -> pd.DataFrame:
    latent, place = (best > 0).nonzero(as_tuple=True)
    ids = image[latent, place].cpu().numpy()
    first = grid.select(tokens).indices(len(grid.roles))[0]
    row, column = grid.position(token[latent, place].cpu().numpy() + first)
    return pd.DataFrame(
        {
            "latent": latent.cpu().numpy(),
            "rank": place.cpu().numpy() + 1,
            "image_id": ids,
            "activation": best[latent, place].cpu().numpy(),
            "token_row": row,
            "token_col": column,
            "split": rows.loc[ids, "split"].to_numpy(),
        }
    )


_CLASS_TYPES = {
    "latent": "int64",
    "attribute": "str",
    "rank": "int64",
    "class": "str",
    "name": "str",
    "score": "float64",
    "support": "int64",
    "score_held_out": "float64",
    "support_held_out": "int64",
    "z": "float64",
}


def _supports(classes: pd.Categorical, held_out: torch.Tensor) -> np.ndarray:
    """Returns the number of images per split and class, [2, classes]."""
    splits = (~held_out.numpy(), held_out.numpy())
    codes = [classes.codes[split & (classes.codes >= 0)] for split in splits]
    return np.stack([np.bincount(c, minlength=len(classes.categories)) for c in codes])


def _class_table(
    attribute: str,
    classes: pd.Categorical,
    sums: torch.Tensor,
    support: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    top: int,
) -> pd.DataFrame:
    """Returns the `top` classes of one attribute per latent; sums [2, classes, F], mean and deviation [F] of train."""
    with np.errstate(invalid="ignore", divide="ignore"):
        score = sums.numpy() / support[:, :, None]  # NaN where a split has no image of the class
        z = (score[0] - mean) / deviation * np.sqrt(support[0])[:, None]
    order = np.argsort(-np.nan_to_num(score[0], nan=-1.0), axis=0, kind="stable")[:top]  # [top, latents]
    place, latent = np.indices(order.shape).reshape(2, -1)
    chosen = order.ravel()
    names = np.asarray(classes.categories, object)
    table = pd.DataFrame(
        {
            "latent": latent,
            "attribute": attribute,
            "rank": place + 1,
            "class": names[chosen],
            "name": np.array([describe(name) for name in names], object)[chosen],
            "score": score[0, chosen, latent],
            "support": support[0, chosen],
            "score_held_out": score[1, chosen, latent],
            "support_held_out": support[1, chosen],
            "z": z[chosen, latent],
        }
    )
    return table[table["score"] > 0]


def _with_top_class(table: pd.DataFrame, classes: pd.DataFrame) -> pd.DataFrame:
    """Adds the class that stands out most: the highest z among each attribute's first class.

    z weighs how far a class's mean lies above the mean of all images by how many images say so: a single picture
    makes no class, and "colour: red" wins over "red circle" where both explain a latent equally well.
    """
    first = classes[(classes["rank"] == 1) & (classes["support"] >= 2)]
    first = first.sort_values(["latent", "z", "attribute"], ascending=[True, False, True]).drop_duplicates("latent")
    first = (
        first[["latent", "attribute", "class", "name", "z"]].add_prefix("top_").rename(columns={"top_latent": "latent"})
    )
    return table.merge(first, on="latent", how="left")


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
