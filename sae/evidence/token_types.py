"""Which tokens a latent fires on: class or patch, border, high norm, one place; and whether it lies on the object.

A latent that says where a token is, or that it is an artefact, is no feature of what the images show.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import roc_auc_score

from sae.activations import OUTLIER
from sae.latent_codes import Codes
from sae.geometry import Geometry

_DRIVEN = 0.5  # of the firing


class Roles:
    """Counts on which tokens latents fire, block by block.

    Args:
        latents: F.
        roles: of the tokens that the SAE was trained on: class, distillation, register or patch.
        grid: the model's geometry; patches come last.
        median_norm: of the layer's patch tokens; a norm above 4 times of it is high.
    """

    def __init__(self, latents: int, roles: list[str], grid: Geometry, median_norm: float):
        self._roles, self._grid, self._limit = np.array(roles), grid.grid, OUTLIER * median_norm
        self._counts, self._high = np.zeros((latents, len(roles))), np.zeros(latents)
        self._tokens, self._high_tokens = 0, 0

    def add(self, codes: Codes) -> None:
        row, latent, _value = codes.entries()
        token = row % codes.tokens
        high = codes.norms > self._limit
        counts = np.bincount(latent.astype(np.int64) * codes.tokens + token, minlength=self._counts.size)
        self._counts += counts.reshape(self._counts.shape)
        self._high += np.bincount(latent, high[row], len(self._high))
        self._tokens, self._high_tokens = self._tokens + len(high), self._high_tokens + int(high.sum())

    def table(self) -> pd.DataFrame:
        """Returns a row per latent: what share of its firing is of which kind.

        on_class, on_register (also distillation), on_patch, on_border (outermost patches, of the patches),
        on_high_norm: shares of the tokens on which it fires, missing where it never does. by_row, by_column, by_place:
        total variation distance ½ Σ |p - q| between where on the grid it fires and where patches are (q, uniform),
        less what n firings give by chance (½ Σ √(2 q (1 - q) / (π n)), the mean for large n): 0 anywhere, near 1 on
        one row, column or patch alone. role: `prefix` (it fires on other tokens than patches), `artefact` (on high
        norms), `position` (one of the three distances above 0.5) or `border`: the first for which more than half of
        the firing is of the kind, at least half of what tokens in general leave open, and a binomial test of it against
        their share gives p < 0.001; else empty.
        """
        counts, total = self._counts, self._counts.sum(1)
        patches = self._roles == "patch"
        grid = self._grid if patches.any() else (1, 1)
        places = counts[:, patches].reshape(-1, *grid) if patches.any() else np.zeros((len(counts), 1, 1))
        border = np.zeros(grid, bool)
        border[[0, -1]] = border[:, [0, -1]] = True
        prefix = {"on_class": self._roles == "class", "on_register": ~patches & (self._roles != "class")}
        with np.errstate(invalid="ignore", divide="ignore"):
            table = pd.DataFrame(
                {name: counts[:, chosen].sum(1) / total for name, chosen in (prefix | {"on_patch": patches}).items()}
                | {"on_border": places[:, border].sum(1) / places.sum((1, 2)), "on_high_norm": self._high / total}
                | {"by_row": _selectivity(places.sum(2)), "by_column": _selectivity(places.sum(1))}
                | {"by_place": _selectivity(places.reshape(len(counts), -1))}
            )
        on_patches, usual_high = counts[:, patches].sum(1), self._high_tokens / max(self._tokens, 1)
        conditions = {
            "prefix": _explained(table["on_patch"].rsub(1), total, 1 - patches.mean()) & patches.any(),
            "artefact": _explained(table["on_high_norm"], total, usual_high),
            "position": table[["by_row", "by_column", "by_place"]].max(axis=1) > _DRIVEN,
            "border": _explained(table["on_border"], on_patches, border.mean()),
        }
        table["role"] = np.select(list(conditions.values()), list(conditions), "")
        return table


def _explained(share: pd.Series, n: np.ndarray, usual: float) -> pd.Series:
    """Returns where a kind of token explains the firing of a latent, by its share of n and the share among all."""
    hits = np.round(share.fillna(0) * n)
    return (share > max(_DRIVEN, (1 + usual) / 2)) & (stats.binom.sf(hits - 1, n, usual) < 1e-3)


def _selectivity(counts: np.ndarray) -> np.ndarray:
    """Returns the distance of each row of counts [F, places] from uniform, less chance; NaN where all are 0."""
    n, q = counts.sum(1, keepdims=True), 1 / counts.shape[1]
    distance = np.abs(counts / n - q).sum(1) / 2
    expected = counts.shape[1] * np.sqrt(2 * q * (1 - q) / (np.pi * n[:, 0])) / 2
    return np.where(n[:, 0] > 0, np.maximum(distance - np.minimum(expected, 1 - q), 0), np.nan)


def localisation(
    codes: Codes, cover: np.ndarray, recovered: pd.DataFrame, shown: dict[tuple[str, str], np.ndarray]
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Scores whether the latent that finds a class best fires on the patches of the object, not just in its images.

    Args:
        codes: of held-out images, the SAE's patches alone.
        cover: the share of each patch that the object covers, [n, patches].
        recovered: attribute, class and latent, from `classes.recovery`.
        shown: (attribute, class) -> whether each image's object is of the class, [n].

    Returns:
        a row for each of `shown` that was recovered: attribute, class, latent; patch_auroc: of the activation as a
        detector of patches that lie at least half on the object in images of the class, among all patches of all
        images; patch_precision, patch_recall: of firing at all; pointing: the share of the class's images on which it
        fires where the strongest patch touches the object (pointing game, Zhang et al. 2016, arXiv 1608.00507);
        pointing_chance: the share of the patches of these images that touch it. And by image and row, bool: whether
        the strongest patch touches it, and whether the image counts.
    """
    touched, inside = cover > 0.1, cover >= 0.5
    rows: list[list] = []
    hits, counted = [], []
    for attribute, name, latent in recovered[["attribute", "class", "latent"]].itertuples(index=False):
        if (attribute, name) not in shown:
            continue
        of_class = shown[attribute, name]
        z = codes.z[:, [latent]].toarray().reshape(cover.shape)
        truth, fires = inside & of_class[:, None], z > 0
        seen = of_class & fires.any(1)
        hit = touched[np.arange(len(z)), z.argmax(1)]
        auroc = roc_auc_score(truth.ravel(), z.ravel()) if 0 < truth.sum() < truth.size else np.nan
        hits.append(hit)
        counted.append(seen)
        means = [truth[fires], fires[truth], hit[seen], touched[seen]]
        rows.append([attribute, name, latent, auroc, *(m.mean() if m.size else np.nan for m in means)])
    columns = "attribute class latent patch_auroc patch_precision patch_recall pointing pointing_chance"
    empty = np.zeros((len(cover), 0), bool)
    hits, counted = (np.stack(part, 1) if part else empty for part in (hits, counted))
    return pd.DataFrame(rows, columns=columns.split()), hits, counted
