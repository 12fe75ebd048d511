"""Which classes a latent stands for: chosen on train images, confirmed on held-out ones, false discoveries controlled.

A latent calls an image by its strongest activation there. All is counted on the pairs (image, latent) that fire, so the
cost grows with these and not with images times latents times classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import sparse, stats

from sae.images import COLUMNS, describe

RATE = 0.05  # of false discoveries among the confirmed


def attributes(manifest: pd.DataFrame) -> dict[str, pd.Categorical]:
    """Returns the classes by which latents are judged: the label, and other columns that group the images.

    A column that is (nearly) different for every image, such as a caption, groups nothing and is left out.
    """
    others = [c for c in manifest.columns if c not in COLUMNS]
    grouping = [c for c in others if 1 < manifest[c].nunique() <= manifest[c].notna().sum() / 2]
    columns = (["label"] if manifest["label"].notna().any() else []) + grouping
    return {c: pd.Categorical(manifest[c].astype(object)) for c in columns}


def pairs(
    images: sparse.csr_array, classes: Mapping[str, pd.Categorical], train: np.ndarray, support: int = 5
) -> pd.DataFrame:
    """Returns a row per latent and class that it fires on in a train image, both splits measured alike.

    Images whose class is not known by an attribute do not count for it. The threshold is the one of the highest F1 on
    train images; held-out images are judged at the same one.

    Args:
        images: each latent's strongest activation on each image, [n, F]; see `codes.Codes.images`.
        classes: per attribute the class of each image [n], missing where unknown.
        train: which images are of the train split [n]; the others are held out.
        support: classes with fewer images in either split are not tested: their `p_held_out` and `q` are missing.

    Returns:
        latent, attribute, class, threshold; for train, and with the ending `_held_out`: support (images of the class),
        score (mean activation over them, zeros included), lift (how much more often the class is found among images on
        which the latent fires than among all), auroc, precision, recall, f1 and mcc at the threshold (Matthews 1975,
        the correlation of the two yes-or-no answers: 0 by chance however frequent the class is). p_held_out: Fisher's
        exact test, one-sided, of precision above the class's share (scipy's hypergeometric distribution); q: p after
        Benjamini & Hochberg (1995), over *all* pairs of F latents with the classes that have support, fired or not.
        confirmed: q at most 0.05.
    """
    image = np.repeat(np.arange(images.shape[0]), np.diff(images.indptr))
    order = np.lexsort((-images.data, images.indices))
    firing = image[order], images.indices[order].astype(np.int64), images.data[order]
    nothing = {"label": pd.Categorical([None] * images.shape[0])}
    parts = [_of_attribute(firing, name, values, train) for name, values in (classes or nothing).items()]
    table = pd.concat(parts, ignore_index=True)
    tested = (table["support"] >= support) & (table["support_held_out"] >= support)
    table["p_held_out"] = np.nan
    table.loc[tested, "p_held_out"] = _fisher(table[tested])
    possible = 0
    for values in classes.values():
        counts = np.stack(
            [
                np.bincount(values.codes[s & (values.codes >= 0)], minlength=len(values.categories))
                for s in (train, ~train)
            ]
        )
        possible += images.shape[1] * int((counts >= support).all(0).sum())
    everything = np.ones(max(possible, int(tested.sum())))
    everything[: tested.sum()] = table.loc[tested, "p_held_out"]
    table["q"] = np.nan
    if tested.any():
        table.loc[tested, "q"] = stats.false_discovery_control(everything)[: tested.sum()]
    table["confirmed"] = (table["q"] <= RATE) & (table["mcc"] > 0)
    return table


def ranked(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """Returns the `most` classes of each latent and attribute with the highest mcc on train images, with their rank."""
    attribute = pd.factorize(table["attribute"])[0]  # numbers: sorting as many texts takes seconds
    order = table.iloc[np.lexsort((-table["mcc"], attribute, table["latent"]))].reset_index(drop=True)
    order.insert(2, "rank", order.groupby(["latent", "attribute"], sort=False).cumcount() + 1)
    order = order[order["rank"] <= most].reset_index(drop=True)
    names = {c: describe(str(c)) for c in order["class"].unique()}
    order.insert(4, "name", order["class"].map(names))
    return order


def named(latents: pd.DataFrame, ranked: pd.DataFrame) -> pd.DataFrame:
    """Adds what each latent stands for: of its tested classes, over all attributes, the one of the highest train mcc.

    top_attribute, top_class, top_name, top_mcc, top_precision_held_out, top_recall_held_out, top_q and confirmed; where
    it is not confirmed on held-out images the latent has no class: top_attribute, top_class and top_name are missing.
    """
    first = ranked[ranked["q"].notna()].sort_values(["latent", "mcc", "attribute"], ascending=[True, False, True])
    first = first.drop_duplicates("latent").set_index("latent")
    kept = first[["attribute", "class", "name", "mcc", "precision_held_out", "recall_held_out", "q"]].add_prefix("top_")
    kept["confirmed"] = first["confirmed"]
    kept.loc[~kept["confirmed"].astype(bool), ["top_attribute", "top_class", "top_name"]] = None
    table = latents.merge(kept, left_on="latent", right_index=True, how="left")
    table["confirmed"] = table["confirmed"].eq(True)
    return table


def recovery(table: pd.DataFrame) -> pd.DataFrame:
    """Returns for each class the latent of the highest F1 on train images, as it does on held-out ones.

    A row per attribute and class with support in both splits: latent, threshold, f1 and auroc (train), f1_held_out,
    auroc_held_out, precision_held_out, recall_held_out, support, support_held_out. A class on which no latent fires in
    any train image is missing. The mean of f1_held_out is a dictionary's concept recovery.
    """
    best = table[table["q"].notna()].sort_values(
        ["attribute", "class", "f1", "latent"], ascending=[True, True, False, True]
    )
    best = best.drop_duplicates(["attribute", "class"])
    columns = "attribute class latent threshold f1 auroc f1_held_out auroc_held_out precision_held_out recall_held_out"
    return best[[*columns.split(), "support", "support_held_out"]].reset_index(drop=True)


def _of_attribute(
    firing: tuple[np.ndarray, ...], attribute: str, classes: pd.Categorical, train: np.ndarray
) -> pd.DataFrame:
    codes = classes.codes.astype(np.int64)
    splits = {"": train & (codes >= 0), "_held_out": ~train & (codes >= 0)}
    sides = {ending: _Side(firing, chosen, codes, len(classes.categories)) for ending, chosen in splits.items()}
    seen = sides[""]
    latent, code, threshold = seen.thresholds()
    table = pd.DataFrame(
        {"latent": latent, "attribute": attribute, "class": np.asarray(classes.categories, object)[code]}
    )
    table["threshold"] = threshold
    for ending, side in sides.items():
        for name, values in side.measure(latent, code, threshold).items():
            table[name + ending] = values
    return table


class _Side:
    """The firing pairs (image, latent) of one split, sorted by latent and falling activation."""

    def __init__(self, firing: tuple[np.ndarray, ...], chosen: np.ndarray, codes: np.ndarray, classes: int):
        image, self.latent, self.value = (part[chosen[firing[0]]] for part in firing)
        self.code, self.n, self.classes = codes[image], int(chosen.sum()), classes
        self.support = np.bincount(codes[chosen], minlength=classes)
        # Position among the latent's images with at least this activation: of equal ones all count.
        start = np.searchsorted(self.latent, self.latent)
        new = np.append((self.latent[1:] != self.latent[:-1]) | (self.value[1:] != self.value[:-1]), True)
        ends = np.flatnonzero(new)
        self.last = ends[np.searchsorted(ends, np.arange(len(self.value)))] if len(ends) else ends
        self.flagged = self.last - start + 1
        self.pair = self.latent * classes + self.code
        self.by_pair = np.argsort(self.pair, kind="stable")  # within a pair by falling activation

    def thresholds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns latent, class and the activation of the highest F1 of each pair that occurs."""
        order = self.by_pair
        pair, first, count = np.unique(self.pair[order], return_index=True, return_counts=True)
        right = np.arange(len(order)) - np.repeat(first, count) + 1
        code = self.code[order]
        f1 = 2 * right / (self.flagged[order] + self.support[code])
        place = np.lexsort((np.arange(len(order)), -f1, np.repeat(np.arange(len(pair)), count)))[first]
        latent, code = np.divmod(pair, max(self.classes, 1))
        return latent, code, self.value[order][place]

    def measure(self, latent: np.ndarray, code: np.ndarray, threshold: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the columns of `pairs` for these latents, classes and thresholds."""
        pair = latent * self.classes + code
        support, n = self.support[code], self.n
        flagged = self._above(self.latent, self.value, latent, threshold)
        right = self._above(self.pair[self.by_pair], self.value[self.by_pair], pair, threshold)
        fires = self._above(self.latent, self.value, latent, np.zeros(len(latent)))
        hits = self._above(self.pair[self.by_pair], self.value[self.by_pair], pair, np.zeros(len(latent)))
        size = (int(latent.max()) + 1) * self.classes if len(latent) else 0
        size = max(size, int(self.pair.max()) + 1 if len(self.pair) else 0)
        total = np.bincount(self.pair, self.value, minlength=size)[pair]
        # Mid-ranks from below, silent images first: the rank sum of Mann & Whitney gives the AUROC.
        start = np.searchsorted(self.latent, self.latent)
        first = np.searchsorted(self.last, self.last)  # the first of those equal to it
        rank = n - (first + self.last) / 2 + start
        ranks = np.bincount(self.pair, rank, minlength=size)[pair] + (support - hits) * (n - fires + 1) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc = (ranks - support * (support + 1) / 2) / (support * (n - support))
            precision, recall = right / flagged, right / support
            product = flagged * support * (n - flagged) * 1.0 * (n - support)
            mcc = np.where(product > 0, (right * 1.0 * n - flagged * 1.0 * support) / np.sqrt(product), 0.0)
            lift = np.where(fires > 0, hits / fires / (support / n), np.nan)
            columns = {"support": support, "score": total / support, "lift": lift, "auroc": auroc}
            columns |= {"precision": np.where(flagged > 0, precision, 0.0), "recall": recall}
            columns |= {"f1": 2 * right / (flagged + support), "mcc": mcc, "flagged": flagged, "right": right}
        return columns | {"images": np.full(len(latent), n)}

    @staticmethod
    def _above(group: np.ndarray, value: np.ndarray, wanted: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        """Returns how many of each wanted group have at least its threshold; groups ascend, values fall within them."""
        levels, level = np.unique(np.concatenate([value, threshold.astype(value.dtype)]), return_inverse=True)
        height = len(levels) + 1
        key = group * height + (len(levels) - level[: len(value)])
        asked = wanted * height + (len(levels) - level[len(value) :])
        return np.searchsorted(key, asked, "right") - np.searchsorted(key, wanted * height, "left")


def _fisher(table: pd.DataFrame) -> np.ndarray:
    """Returns P(at least so many right | as many flagged at random) of each row, each case computed once."""
    cases = table[["right_held_out", "images_held_out", "support_held_out", "flagged_held_out"]].to_numpy(np.int64)
    unique, place = np.unique(cases, axis=0, return_inverse=True)
    return stats.hypergeom.sf(unique[:, 0] - 1, *unique[:, 1:].T)[place.ravel()]
