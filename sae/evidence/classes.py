"""The classes of latents: chosen on train images, confirmed on held-out images at a controlled false discovery rate.

The activation of a latent on an image is its strongest one there. All counts run over the pairs (image, latent) that
fire, so the cost grows with their number, not with images times latents times classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import sparse, stats

from sae.images import COLUMNS, describe

RATE = 0.05  # of false discoveries among the confirmed


def attributes(manifest: pd.DataFrame) -> dict[str, pd.Categorical]:
    """Returns the attributes with which latents are compared: the label, and other columns that group the images.

    A column that is (nearly) different for every image, such as a caption, groups nothing and is left out.
    """
    others = [c for c in manifest.columns if c not in COLUMNS]
    grouping = [c for c in others if 1 < manifest[c].nunique() <= manifest[c].notna().sum() / 2]
    columns = (["label"] if manifest["label"].notna().any() else []) + grouping
    return {c: pd.Categorical(manifest[c].astype(object)) for c in columns}


def pairs(
    images: sparse.csr_array, classes: Mapping[str, pd.Categorical], train: np.ndarray, support: int = 5
) -> pd.DataFrame:
    """Returns a row per latent and class of a train image on which it fires, with the numbers of both splits.

    An image without a class does not count for that attribute. The threshold has the highest F1 on train images; the
    same threshold is used on held-out images.

    Args:
        images: each latent's strongest activation on each image, [n, F]; see `codes.Codes.images`.
        classes: per attribute the class of each image [n], missing where unknown.
        train: bool [n], whether an image is of the train split; the others are held out.
        support: classes with fewer images in either split are not tested: their `p_held_out` and `q` are missing.

    Returns:
        latent, attribute, class, threshold; for train, and with the ending `_held_out`: support (images of the class),
        score (mean activation over them, zeros included), lift (frequency of the class among the images on which the
        latent fires, divided by its frequency among all images), auroc, precision, recall, f1 and mcc at the threshold
        (Matthews 1975, the correlation of the two yes-or-no answers: 0 by chance however frequent the class is).
        p_held_out: Fisher's exact test, one-sided, of precision above the class's share (scipy's hypergeometric
        distribution); q: p after Benjamini & Hochberg (1995), over *all* pairs of F latents with the classes that have
        support, fired or not. confirmed: q at most 0.05.
    """
    firing, splits = _firing(images), {}
    nothing = {"label": pd.Categorical([None] * images.shape[0])}
    parts, possible = [], 0
    for attribute, values in (classes or nothing).items():
        codes = values.codes.astype(np.int64)
        sides = {}
        for ending, chosen in {"": train & (codes >= 0), "_held_out": ~train & (codes >= 0)}.items():
            known = ending, chosen.tobytes()  # most attributes are known of the same images
            if known not in splits:
                splits[known] = _Split(*firing, chosen, images.shape[1])
            sides[ending] = _Side(splits[known], codes, len(values.categories))
        parts.append(_of_attribute(attribute, values, sides))
        possible += images.shape[1] * int(np.all([side.support >= support for side in sides.values()], 0).sum())
    table = pd.concat(parts, ignore_index=True)
    tested = ((table["support"] >= support) & (table["support_held_out"] >= support)).to_numpy()
    table["p_held_out"] = table["q"] = np.nan
    table.loc[tested, "p_held_out"] = p = _fisher(table[tested])
    # The pairs that never fire together have p = 1: they count among the tests.
    q = stats.false_discovery_control(p) * (max(possible, len(p)) / max(len(p), 1))
    table.loc[tested, "q"] = np.minimum(q, 1)
    table["confirmed"] = (table["q"] <= RATE) & (table["mcc"] > 0)
    return table


def ranked(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """Returns the `most` classes of each latent and attribute with the highest mcc on train images, with their rank."""
    attribute, latent = pd.factorize(table["attribute"])[0], table["latent"].to_numpy()
    order = np.lexsort((-table["mcc"], attribute, latent))  # numbers: sorting as many texts takes seconds
    first = firsts(latent[order], attribute[order])
    rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order))) + 1
    kept = rank <= most
    best = table.iloc[order[kept]].reset_index(drop=True)
    best.insert(2, "rank", rank[kept])
    names = {c: describe(str(c)) for c in best["class"].unique()}
    best.insert(4, "name", best["class"].map(names))
    return best


def named(latents: pd.DataFrame, ranked: pd.DataFrame) -> pd.DataFrame:
    """Adds the class of each latent: the tested class with the highest train MCC, over all attributes.

    top_attribute, top_class, top_name, top_mcc, top_precision_held_out, top_recall_held_out, top_q and confirmed; where
    it is not confirmed on held-out images the latent has no class: top_attribute, top_class and top_name are missing.
    """
    first = best_classes(ranked)
    kept = first[["attribute", "class", "name", "mcc", "precision_held_out", "recall_held_out", "q"]].add_prefix("top_")
    kept["confirmed"] = first["confirmed"]
    kept.loc[~kept["confirmed"].astype(bool), ["top_attribute", "top_class", "top_name"]] = None
    table = latents.merge(kept, left_on="latent", right_index=True, how="left")
    table["confirmed"] = table["confirmed"].eq(True)
    return table


def best_classes(ranked: pd.DataFrame) -> pd.DataFrame:
    """Returns by latent the row of its best class: the tested class with the highest train MCC, over all attributes."""
    tested = ranked[ranked["q"].notna()]
    attribute = pd.factorize(tested["attribute"], sort=True)[0]
    order = np.lexsort((attribute, -tested["mcc"], tested["latent"]))
    return tested.iloc[order].drop_duplicates("latent").set_index("latent")


def best_latents(table: pd.DataFrame) -> pd.DataFrame:
    """Returns for each class the latent with the highest F1 on train images, with its numbers on held-out images.

    A row per attribute and class with support in both splits: latent, threshold, f1 and auroc (train), f1_held_out,
    auroc_held_out, precision_held_out, recall_held_out, support, support_held_out. A class on which no latent fires in
    any train image is missing. The mean of f1_held_out is a dictionary's concept recovery.
    """
    tested = table[table["q"].notna()]
    attribute, name = (pd.factorize(tested[column], sort=True)[0] for column in ("attribute", "class"))
    order = np.lexsort((tested["latent"], -tested["f1"], name, attribute))
    best = tested.iloc[order[firsts(attribute[order], name[order])]]
    columns = "attribute class latent threshold f1 auroc f1_held_out auroc_held_out precision_held_out recall_held_out"
    return best[[*columns.split(), "support", "support_held_out"]].reset_index(drop=True)


def _firing(images: sparse.csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns image, latent, activation and `fall` of the firing pairs, by latent and falling activation.

    `fall` is the place of the activation among all different ones, the highest first.
    """
    columns = images.tocsc()
    latent = np.repeat(np.arange(images.shape[1]), np.diff(columns.indptr))
    values, level = np.unique(columns.data, return_inverse=True)
    fall = len(values) - 1 - level
    order = np.argsort(latent * len(values) + fall, kind="stable")
    return columns.indices[order], latent[order], columns.data[order], fall[order]


class _Split:
    """The firing pairs of some images; nothing here depends on a class."""

    def __init__(
        self,
        image: np.ndarray,
        latent: np.ndarray,
        value: np.ndarray,
        fall: np.ndarray,
        chosen: np.ndarray,
        latents: int,
    ):
        kept = np.flatnonzero(chosen[image])
        self.image, self.latent, self.value, self.fall = (part[kept] for part in (image, latent, value, fall))
        self.chosen, self.n, self.levels, self.latents = chosen, int(chosen.sum()), fall.max(initial=0) + 1, latents
        self.key = self.latent * self.levels + self.fall
        self.fires = np.bincount(self.latent, minlength=self.latents)
        self.start = np.cumsum(self.fires) - self.fires
        # Place among the latent's images with at least this activation: of equal ones all count.
        first = firsts(self.key)
        equal = np.diff(first, append=len(kept))
        place = np.repeat(first, equal) - self.start[self.latent]
        self.flagged = place + np.repeat(equal, equal)
        # Mid-ranks from below, the silent images first.
        self.rank = self.n - place - (np.repeat(equal, equal) - 1) / 2


class _Side:
    """The firing pairs of one split beside the classes of one attribute."""

    def __init__(self, split: _Split, codes: np.ndarray, classes: int):
        self.split, self.classes = split, classes
        self.support = np.bincount(codes[split.chosen], minlength=classes)
        self.code = codes[split.image]
        self.pair = split.latent * classes + self.code
        self.hits = np.bincount(self.pair, minlength=split.latents * classes)
        self.start = np.cumsum(self.hits) - self.hits
        self.order = _grouped(self.pair, len(self.hits))  # within a pair by falling activation

    def thresholds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns each pair of latent and class that occurs, and the place of the activation of its highest F1."""
        pair, order = np.flatnonzero(self.hits), self.order
        first, count = self.start[pair], self.hits[pair]
        right = np.arange(len(order)) - np.repeat(first, count) + 1
        f1 = 2 * right / (self.split.flagged[order] + self.support[self.code[order]])
        highest = np.maximum.reduceat(f1, first) if len(first) else f1
        best = np.flatnonzero(f1 == np.repeat(highest, count))
        best = best[firsts(np.repeat(pair, count)[best])]
        return *np.divmod(pair, max(self.classes, 1)), order[best]

    def measure(self, latent: np.ndarray, code: np.ndarray, fall: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the columns of `pairs` for these latents and classes, at thresholds by their place `fall`."""
        split, pair = self.split, latent * self.classes + code
        support, n, fires, hits = self.support[code], self.split.n, self.split.fires[latent], self.hits[pair]
        flagged = np.searchsorted(split.key, latent * split.levels + fall, "right") - split.start[latent]
        key = self.pair[self.order] * split.levels + split.fall[self.order]
        right = np.searchsorted(key, pair * split.levels + fall, "right") - self.start[pair]
        total, ranks = (np.bincount(self.pair, x, len(self.hits))[pair] for x in (split.value, split.rank))
        # The rank sum of Mann & Whitney gives the AUROC.
        ranks = ranks + (support - hits) * (n - fires + 1) / 2
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


def _of_attribute(attribute: str, classes: pd.Categorical, sides: dict[str, _Side]) -> pd.DataFrame:
    train = sides[""]
    latent, code, place = train.thresholds()
    columns = {"latent": latent, "attribute": attribute, "class": pd.Index(np.asarray(classes.categories, object))}
    columns["class"] = columns["class"].take(code)
    columns["threshold"] = train.split.value[place]
    for ending, side in sides.items():
        measured = side.measure(latent, code, train.split.fall[place])
        columns |= {name + ending: values for name, values in measured.items()}
    return pd.DataFrame(columns)


def firsts(*keys: np.ndarray) -> np.ndarray:
    """Returns the places at which a new value begins in sorted keys."""
    new = np.any([key[1:] != key[:-1] for key in keys], 0)
    return np.append(0, np.flatnonzero(new) + 1)[: len(keys[0])]


def _grouped(group: np.ndarray, groups: int) -> np.ndarray:
    """Returns the stable order by group number, in linear time: the columns of a matrix with an entry in each row."""
    n = len(group)
    return sparse.csr_array((np.ones(n, bool), group, np.arange(n + 1)), (n, groups)).tocsc().indices


def _fisher(table: pd.DataFrame) -> np.ndarray:
    """Returns P(at least this number right | the same number flagged at random) of each row."""
    cases = table[["right_held_out", "images_held_out", "support_held_out", "flagged_held_out"]].to_numpy(np.int64)
    if not len(cases):
        return np.zeros(0)
    shape = cases.max(0) + 1
    case, place = np.unique(np.ravel_multi_index(tuple(cases.T), shape), return_inverse=True)
    right, images, support, flagged = np.unravel_index(case, shape)
    return stats.hypergeom.sf(right - 1, images, support, flagged)[place]
