"""The tokens on which a latent fires: their kind, position and norm, and whether they lie on the object.

A latent that encodes the position of a token, or artefact tokens, is not a feature of the images' content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import bdtrc

from sae.evidence.probing import auroc
from sae.latent_codes import Codes, Tally

_DRIVEN = 0.5  # of the firing


def table(tally: Tally, kinds: Sequence[str], patches: tuple[int, int]) -> pd.DataFrame:
    """Returns a row per latent: the shares of its firing by type of token.

    Args:
        tally: counts over the tokens that the dictionary reads.
        kinds: of these tokens, in order: class, distillation, register or patch; patches come last.
        patches: the rows and columns of patches.

    Returns:
        on_class, on_register (also distillation), on_patch, on_border (outermost patches, of the patches),
        on_high_norm: shares of the tokens on which it fires, missing where it never does. by_row, by_column, by_place:
        total variation distance ½ Σ |p - q| between the places at which it fires and those of all patches (q, uniform),
        minus the distance that n firings give by chance (½ Σ √(2 q (1 - q) / (π n)), the mean for large n): 0 anywhere,
        near 1 on one row, column or patch alone. token_type: `prefix` (it fires on other tokens than patches),
        `artefact` (on high norms), `position` (one of the three distances above 0.5) or `border`: the first whose share
        of the latent's firing exceeds (1 + base rate) / 2 and is significantly above the base rate, its share of all
        tokens (binomial test, p < 0.001); else empty.
    """
    counts, is_patch = tally.by_token.astype(np.float64), np.array(kinds) == "patch"
    total, rows = counts.sum(1), int(tally.rows.sum())
    shape = patches if is_patch.any() else (1, 1)
    places = counts[:, is_patch].reshape(-1, *shape) if is_patch.any() else np.zeros((len(counts), 1, 1))
    border = np.zeros(shape, bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    is_class = np.array(kinds) == "class"
    types = {"on_class": is_class, "on_register": ~is_patch & ~is_class, "on_patch": is_patch}
    with np.errstate(invalid="ignore", divide="ignore"):
        table = pd.DataFrame(
            {name: counts[:, chosen].sum(1) / total for name, chosen in types.items()}
            | {"on_border": places[:, border].sum(1) / places.sum((1, 2)), "on_high_norm": tally.high / total}
            | {"by_row": _selectivity(places.sum(2)), "by_column": _selectivity(places.sum(1))}
            | {"by_place": _selectivity(places.reshape(len(counts), -1))}
        )
    on_patches, usual_high = counts[:, is_patch].sum(1), int(tally.high_rows.sum()) / max(rows, 1)
    conditions = {
        "prefix": _explained(table["on_patch"].rsub(1), total, 1 - is_patch.mean()) & is_patch.any(),
        "artefact": _explained(table["on_high_norm"], total, usual_high),
        "position": table[["by_row", "by_column", "by_place"]].max(axis=1) > _DRIVEN,
        "border": _explained(table["on_border"], on_patches, border.mean()),
    }
    table["token_type"] = np.select(list(conditions.values()), list(conditions), "")
    return table


def _explained(share: pd.Series, n: np.ndarray, usual: float) -> pd.Series:
    """Returns whether a type of token explains the firing of a latent, by its share of n and the share among all."""
    hits = np.round(share.fillna(0).to_numpy() * n)
    above = np.where(hits > 0, bdtrc(np.maximum(hits - 1, 0), n.astype(np.int64), usual), 1)  # P(so many by chance)
    return (share > max(_DRIVEN, (1 + usual) / 2)) & (above < 1e-3)


def _selectivity(counts: np.ndarray) -> np.ndarray:
    """Returns the distance of each row of counts [F, places] from uniform, less chance; NaN where all are 0."""
    n, q = counts.sum(1, keepdims=True), 1 / counts.shape[1]
    distance = np.abs(counts / n - q).sum(1) / 2
    expected = counts.shape[1] * np.sqrt(2 * q * (1 - q) / (np.pi * n[:, 0])) / 2
    return np.where(n[:, 0] > 0, np.maximum(distance - np.minimum(expected, 1 - q), 0), np.nan)


def localisation(
    codes: Codes, coverage: np.ndarray, best_latents: pd.DataFrame, objects: Mapping[tuple[str, str], np.ndarray]
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Scores whether the best latent of a class fires on the patches of the object, not just in its images.

    Args:
        codes: of held-out images, the patches alone.
        coverage: the share of each patch that the object covers, [n, patches].
        best_latents: attribute, class and latent, from `classes.best_latents`.
        objects: (attribute, class) -> whether each image's object is of the class, [n].

    Returns:
        a row for each of `objects` that has a best latent: attribute, class, latent; patch_auroc: of the activation as
        a detector of patches that lie at least half on the object in images of the class, among all patches of all
        images; patch_precision, patch_recall: of "the latent fires" as that detector; pointing: the share of the
        class's images on which it fires where the strongest patch touches the object (pointing game, Zhang et al. 2016,
        arXiv 1608.00507); pointing_chance: the share of the patches of these images that touch it. And by image and
        row, bool: whether the strongest patch touches it, and whether the image counts.
    """
    touched, inside = coverage > 0.1, coverage >= 0.5
    by_latent, rows = codes.z.tocsc(), []
    hits: list[np.ndarray] = []
    counted: list[np.ndarray] = []
    for attribute, name, latent in best_latents[["attribute", "class", "latent"]].itertuples(index=False):
        if (attribute, name) not in objects:
            continue
        of_class = objects[attribute, name]
        z = by_latent[:, [latent]].toarray().reshape(coverage.shape)
        truth, fires = inside & of_class[:, None], z > 0
        seen = of_class & fires.any(1)
        hit = touched[np.arange(len(z)), z.argmax(1)]
        hits.append(hit)
        counted.append(seen)
        means = [truth[fires], fires[truth], hit[seen], touched[seen]]
        patch_auroc = auroc(z.reshape(-1, 1), truth.reshape(-1, 1)).item()
        rows.append([attribute, name, latent, patch_auroc, *(m.mean() if m.size else np.nan for m in means)])
    columns = "attribute class latent patch_auroc patch_precision patch_recall pointing pointing_chance"
    empty = np.zeros((len(coverage), 0), bool)
    touching, counting = (np.stack(part, 1) if part else empty for part in (hits, counted))
    return pd.DataFrame(rows, columns=columns.split()), touching, counting
