"""Which tokens a latent fires on: class or patch, border, high norm, one place; and whether it lies on the object.

A latent that says where a token is, or that it is an artefact, is no feature of what the images show.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sae.evidence.codes import Codes

OUTLIER = 4  # times the median patch norm (Darcet et al. 2024, arXiv 2309.16588)
_DRIVEN = 0.5  # of the firing, above what chance gives


def roles(codes: Codes, norms: np.ndarray, prefix: list[str], grid: tuple[int, int]) -> pd.DataFrame:
    """Returns a row per latent: what share of its firing tokens is of which kind.

    Args:
        codes: of all tokens that the SAE was trained on, patches last.
        norms: ‖x‖ of each of these tokens, [n, tokens].
        prefix: roles of the tokens in front of the patches, of those that the SAE was trained on.
        grid: rows and columns of patches.

    Returns:
        latent; on_class, on_patch, on_register, on_border (the outermost patches), on_high_norm (patches above 4 times
        the median patch norm): shares of the tokens on which it fires, NaN where it never does. by_row, by_column,
        by_place: total variation distance ½ Σ |p - q| between where on the grid it fires and where patches are
        (uniform), less what so few firings give by chance (the mean of ½ Σ √(2 q (1 - q) / (π n)), its value for large
        n): 0 anywhere, near 1 one row, column or patch alone. role: `prefix`, `artefact`, `border` or `position`
        where more than half of its firing is explained so and chance gives far less, else empty.
    """
    z, tokens = codes.z, codes.tokens
    latents, patches = codes.latents, grid[0] * grid[1] if tokens > len(prefix) else 0
    token = np.repeat(np.arange(z.shape[0]), np.diff(z.indptr)) % tokens
    counts = np.bincount(z.indices.astype(np.int64) * tokens + token, minlength=latents * tokens)
    counts = counts.reshape(latents, tokens).astype(float)
    total = counts.sum(1)
    kinds = np.array([*prefix, *["patch"] * patches])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = {kind: counts[:, kinds == kind].sum(1) / total for kind in ("class", "patch", "register")}
        on_patches = counts[:, kinds == "patch"]
        fired = on_patches.sum(1)
        places = on_patches.reshape(latents, *grid) if patches else np.zeros((latents, 1, 1))
        border = np.zeros(places.shape[1:], bool)
        border[[0, -1]] = border[:, [0, -1]] = True
        high = np.zeros_like(norms, bool)
        if patches:
            high[:, kinds == "patch"] = norms[:, kinds == "patch"] > OUTLIER * np.median(norms[:, kinds == "patch"])
        raised = np.bincount(z.indices, high.ravel()[np.repeat(np.arange(z.shape[0]), np.diff(z.indptr))], latents)
        table = pd.DataFrame(
            {
                "latent": np.arange(latents),
                **{f"on_{kind}": share for kind, share in shares.items()},
                "on_border": places[:, border].sum(1) / fired,
                "on_high_norm": raised / total,
                "by_row": _selectivity(places.sum(2)),
                "by_column": _selectivity(places.sum(1)),
                "by_place": _selectivity(places.reshape(latents, -1)),
            }
        )
    chance = border.mean()  # of the patches
    where = [
        (len(prefix) > 0) & (patches > 0) & (table["on_patch"] < 1 - _DRIVEN),
        (table["on_high_norm"] > _DRIVEN) & (high.mean() < _DRIVEN / 2),
        (table["on_border"] > max(_DRIVEN, (1 + chance) / 2)) & (chance < 1),
        table[["by_row", "by_column", "by_place"]].max(axis=1) > _DRIVEN,
    ]
    table["role"] = np.select(where, ["prefix", "artefact", "border", "position"], "")
    return table


def _selectivity(counts: np.ndarray) -> np.ndarray:
    """Returns the distance of each row of counts [F, places] from uniform, less chance; NaN where all are 0."""
    n, q = counts.sum(1, keepdims=True), 1 / counts.shape[1]
    distance = np.abs(counts / n - q).sum(1) / 2
    expected = counts.shape[1] * np.sqrt(2 * q * (1 - q) / (np.pi * n[:, 0])) / 2
    return np.where(n[:, 0] > 0, np.maximum(distance - np.minimum(expected, 1 - q), 0), np.nan)


def localisation(
    codes: Codes, cover: np.ndarray, recovered: pd.DataFrame, has: dict[tuple[str, str], np.ndarray]
) -> pd.DataFrame:
    """Scores whether the latent that finds a class best fires on the patches of the object, not just in its images.

    Args:
        codes: of held-out images, patches alone.
        cover: share of each patch that the object covers, [n, patches].
        recovered: attribute, class and latent, from `classes.recovery`.
        has: (attribute, class) -> which of the images show it [n]; only what the object has, not the background.

    Returns:
        attribute, class, latent; patch_auroc: of the activation as a detector of patches that lie at least half on the
        object in images of the class, among all patches of all images; patch_precision, patch_recall: of firing at
        all; pointing: share of the class's images on which it fires where the strongest patch touches the object
        (Zhang et al. 2016, arXiv 1608.00507, the pointing game); pointing_chance: the share of the patches of these
        images that touch it.
    """
    from sklearn.metrics import roc_auc_score

    touched, inside = cover > 0.1, cover >= 0.5
    rows = []
    for fact in recovered.itertuples():
        key = fact.attribute, getattr(fact, "_2", None) or fact[recovered.columns.get_loc("class") + 1]
        if key not in has:
            continue
        z = codes.z[:, [fact.latent]].toarray().reshape(cover.shape)
        truth = inside & has[key][:, None]
        fires = z > 0
        shown = has[key] & fires.any(1)
        hit = touched[np.arange(len(z)), z.argmax(1)]
        rows.append(
            {
                "attribute": key[0],
                "class": key[1],
                "latent": fact.latent,
                "patch_auroc": roc_auc_score(truth.ravel(), z.ravel()) if 0 < truth.sum() < truth.size else np.nan,
                "patch_precision": truth[fires].mean() if fires.any() else np.nan,
                "patch_recall": fires[truth].mean() if truth.any() else np.nan,
                "pointing": hit[shown].mean() if shown.any() else np.nan,
                "pointing_chance": touched[shown].mean() if shown.any() else np.nan,
            }
        )
    columns = "attribute class latent patch_auroc patch_precision patch_recall pointing pointing_chance"
    return pd.DataFrame(rows, columns=columns.split())
