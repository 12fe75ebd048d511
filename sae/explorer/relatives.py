"""Where else a latent is found: near it in its own SAE, and in SAEs of other ks, layers and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sae.explorer.parts import number

NEAREST = 6
RELATED = 0.3  # correlation below which a latent of another SAE is no relative; as `partial` in `matching.fates`


def nearest(decoder: np.ndarray, alive: np.ndarray) -> list[list[list[float]]]:
    """Returns for each latent those with the most similar decoder rows: pairs of latent and cosine."""
    unit = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-30)
    found, block = [], 1024
    for first in range(0, len(unit), block):
        cosine = unit[first : first + block] @ unit.T
        cosine[:, ~alive] = -np.inf
        cosine[np.arange(len(cosine)), first + np.arange(len(cosine))] = -np.inf
        order = np.argsort(-cosine, axis=1, kind="stable")[:, :NEAREST]
        values = np.take_along_axis(cosine, order, 1)
        for others, row in zip(order.tolist(), values, strict=True):
            found.append([[o, number(c)] for o, c in zip(others, row, strict=True) if np.isfinite(c)])
    return found


def relatives(
    latents: pd.DataFrame,
    fates: pd.DataFrame,
    chains: pd.DataFrame,
    point: Mapping[str, Any],
    seeds: Sequence[int],
) -> dict[int, list[dict[str, Any]]]:
    """Returns by latent what corresponds to it elsewhere: `to` (what differs in the link), latent, r, and a word on it.

    In other seeds its counterpart; at the next k its fate, and those of the k before of which it is the best match; in
    the layers before and after the best match. latent is missing where there is none.

    Args:
        latents, fates, chains: see `point.Tables`.
        point: layer and k of the SAE.
        seeds: of the grid; counterparts in other ones are not `known`: they can be named, but not followed.
    """
    found: dict[int, list[dict[str, Any]]] = {}

    def add(latent: int, to: dict[str, int], other: int | None, r: float | None, note: str, known: bool = True) -> None:
        relative = {"to": to, "latent": None if other is None else int(other), "r": None if r is None else number(r)}
        found.setdefault(latent, []).append(relative | {"note": note, "known": known})

    k, layer = point["k"], point["layer"]
    if len(fates):
        here = fates[fates["k"] == k]
        for row in here[here["fate"] != "dead"].itertuples():
            children = [] if row.fate == "lost" else [row.best, *(c for c in row.child_latents if c != row.best)]
            for place, child in enumerate(children[: 1 if row.fate != "split" else 4]):
                add(row.latent, {"k": int(row.next_k)}, child, None if place else row.r_best, row.fate)
            if not children:
                add(row.latent, {"k": int(row.next_k)}, None, row.r_best, row.fate)
        before = fates[fates["next_k"] == k]
        kin = before[before["r_best"] >= RELATED].sort_values("r_best", ascending=False)
        for row in kin.groupby("best").head(3).itertuples():
            add(row.best, {"k": int(row.k)}, row.latent, row.r_best, row.fate)
        for other_k in before["k"].unique():
            for latent in np.setdiff1d(latents["latent"], kin["best"]).tolist():
                add(latent, {"k": int(other_k)}, None, None, "none")
    if len(chains):
        chains = chains[~chains["shuffled"]]
        layers = sorted(chains["layer"].unique().tolist())
        here = chains[(chains["layer"] == layer) & chains["fires"]]
        for side, step in (("previous", -1), ("next", 1)):
            place = layers.index(layer) + step
            if not 0 <= place < len(layers):
                continue
            for row in here[["latent", side, f"r_{side}"]].itertuples(index=False):
                latent, other, r = row
                related = r >= RELATED
                add(latent, {"layer": layers[place]}, other if related else None, r, "" if related else "none")
    columns = ["latent", "partner_seeds", "partners_by_correlation", "partner_correlations"]
    for row in latents[columns].itertuples(index=False):
        for seed, other, r in zip(*row[1:], strict=True):
            add(row.latent, {"seed": int(seed)}, other, r, "", int(seed) in seeds)
    return found
