"""The relatives of a latent: neighbours in its SAE, counterparts in those of other ks, layers and seeds, and causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sae.evidence.edges import agreement
from sae.evidence.measures import RELATED
from sae.explorer.parts import number, numbers

NEAREST = 6
_EDGES = 5  # shown of a latent in each direction
# The note on a match across ks: on the page of the latent at the first k; on the page of its match at the next k.
_OUTCOMES = {
    "same": ("the same", "the same"),
    "split": ("one of those it splits into", "splits into several, this one among them"),
    "changed": ("changed", "changed"),
    "merged": ("it merges into this one with others", "merges into this one with others"),
}


def nearest(decoder: np.ndarray, alive: np.ndarray) -> list[list[list[float]]]:
    """Returns for each latent those with the most similar decoder rows: pairs of latent and cosine.

    Args:
        decoder: W_dec [F, d].
        alive: bool [F], the latents that may be named.
    """
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
    across_ks: pd.DataFrame,
    across_layers: pd.DataFrame,
    point: Mapping[str, Any],
    seeds: Sequence[int],
) -> dict[int, list[dict[str, Any]]]:
    """Returns the counterparts of each latent in other SAEs, as lists by latent.

    Keys: to (the key in which the other SAE differs, with its value), latent (None: no counterpart), r, note (a comment
    on the match), and known (whether the explorer has a page of the counterpart).

    In other seeds: its counterpart. At the next k: its match or its parts; at the k before: up to three latents whose
    match it is. In the layers before and after: its best match.

    Args:
        latents, across_ks, across_layers: see `point.Tables`.
        point: layer and k of the SAE.
        seeds: of the grid; counterparts in other seeds are not `known`: they have a name but no link.
    """
    found: dict[int, list[dict[str, Any]]] = {}

    def add(
        latent: int, to: dict[str, int], other: int | None, r: float | None, note: str = "", known: bool = True
    ) -> None:
        relative = {"to": to, "latent": None if other is None else int(other), "r": None if r is None else number(r)}
        found.setdefault(latent, []).append(relative | {"note": note, "known": known})

    k, layer = point["k"], point["layer"]
    if len(across_ks):
        matches = across_ks[across_ks["k"] == k]
        for row in matches[matches["outcome"] != "dead"].itertuples():
            to = {"k": int(row.next_k)}
            if row.outcome == "lost":
                add(row.latent, to, None, row.r_best)
                continue
            note = _OUTCOMES[row.outcome][0]
            add(row.latent, to, row.best, row.r_best, note)
            if row.outcome == "split":
                for child in [child for child in row.child_latents if child != row.best][:3]:
                    add(row.latent, to, child, None, note)
        before = across_ks[across_ks["next_k"] == k]
        parents = before[before["r_best"] >= RELATED].sort_values("r_best", ascending=False)
        for row in parents.groupby("best").head(3).itertuples():
            add(row.best, {"k": int(row.k)}, row.latent, row.r_best, _OUTCOMES[row.outcome][1])
        for other_k in before["k"].unique():
            for latent in np.setdiff1d(latents["latent"], parents["best"]).tolist():
                add(latent, {"k": int(other_k)}, None, None)
    if len(across_layers):
        matches = across_layers[~across_layers["shuffled"]]
        layers = sorted(matches["layer"].unique().tolist())
        firing = matches[(matches["layer"] == layer) & matches["fires"]]
        for side, step in (("previous", -1), ("next", 1)):
            place = layers.index(layer) + step
            if not 0 <= place < len(layers):
                continue
            for latent, other, r in firing[["latent", side, f"r_{side}"]].itertuples(index=False):
                add(latent, {"layer": layers[place]}, other if r >= RELATED else None, r)
    columns = ["latent", "partner_seeds", "partners_by_correlation", "partner_correlations"]
    for latent, *partners in latents[columns].itertuples(index=False):
        for seed, other, r in zip(*partners, strict=True):
            add(latent, {"seed": int(seed)}, other, r, known=int(seed) in seeds)
    return found


def edges(table: pd.DataFrame, layer: int) -> dict[int, list[dict[str, Any]]]:
    """Returns the strongest edges of each latent from the layer before and to the layer after, as lists by latent.

    Keys: layer (the other one), into (whether the edge leads to this latent), agreement (of estimates and removals
    between the two layers: rank correlation and signs, null where too few were checked) and edges: other latent, share,
    control and removed share (null where it was not measured).

    Args:
        table: edges of all pairs of layers, with layer and next_layer.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    sides = (("target", "latent", "next_layer", "layer", True), ("latent", "target", "layer", "next_layer", False))
    for own, other, here, there, into in sides if len(table) else ():
        part = table[table[here] == layer]
        agreed = numbers(agreement(part), 3)
        strongest = part.iloc[np.argsort(-part["share"].abs(), kind="stable")]
        for latent, rows in strongest.groupby(own):
            rows = rows.head(_EDGES)
            values = [numbers(rows[name], 3) for name in ("share", "control", "removed")]
            listed = [list(row) for row in zip(rows[other].tolist(), *values, strict=True)]
            entry = {"layer": int(rows[there].iloc[0]), "into": into, "agreement": agreed, "edges": listed}
            found.setdefault(int(latent), []).append(entry)
    return found
