"""The page about two experiments: sentences, and lists of latents that both have or only one."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pandas as pd

from sae import images
from sae.evidence import conclusion
from sae.evidence.compare import FEWEST, OTHER, THIS, Comparison, Experiment
from sae.evidence.measures import COMPARED, FOUND, MEASURES

_LISTED = 10  # latents in each list
_POINT = ["layer", "k", "method", "seed"]
_WEIGHTS = {None: "timm's pretrained weights", "random": "random weights"}
_SHIPPED = "vit_tiny_concepts"  # its weights come with the project, not from timm


def unmatched(found: Comparison) -> str:
    """Returns why latents cannot be matched, in a sentence; empty if they can."""
    if len(found.rows):
        return ""
    if not len(found.both):
        return "The two experiments share no image. So their latents cannot be matched."
    return f"The two experiments share {len(found.both)} images. That is too few to match latents: {FEWEST} are needed."


def sentences(found: Comparison) -> list[str]:
    """Returns what the comparison says, the most important first."""
    names, rows = (found.own.name, found.other.name), found.rows
    lines = _matched(*names, found.latents, found.table) if len(rows) else [unmatched(found)]
    lines += _measured(*names, found.table)
    if len(rows):
        train = "in both experiments, train images among them"
        where = "held out in both experiments" if rows["held_out"].all() else train
        lines.append(f"Latents were matched on {len(rows):,} images that are {where}.")
    if not _alike(found):
        lines.append(
            "The held-out images of the two experiments differ, or their classes do. So a difference in a measure may "
            "come from these alone."
        )
    return lines


def _alike(found: Comparison) -> bool:
    """Returns whether the held-out images of both are the same ones, and the attributes of all shared images too."""
    own, other, both = found.own, found.other, found.both
    tables = [one.manifest.set_index("id").loc[both[key]] for one, key in ((own, "id"), (other, "other_id"))]
    facts = [column for column in images.COLUMNS if column != "label"]  # of the files
    attributes = [table.drop(columns=facts, errors="ignore").reset_index(drop=True) for table in tables]
    held_out = [{*images.used(one.manifest, images.HELD_OUT)["sha256"]} for one in (own, other)]
    return held_out[0] == held_out[1] and attributes[0].equals(attributes[1])


def _matched(a: str, b: str, latents: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    best = latents[latents["fires"]].sort_values("r", ascending=False, kind="stable")
    best = best.drop_duplicates(["of", *_POINT, "latent"])  # those of the other experiment have a row per own kind
    sides = [best[best["of"] == of] for of in (THIS, OTHER)]

    def shares(column: str) -> list[str]:
        return [f"{(side[column] >= FOUND).sum() / max(len(side), 1):.0%}" for side in sides]

    (one, two), chance = shares("r"), ["", ""]
    if all(side["random"].notna().any() for side in sides):
        chance = [f" ({n} in its random dictionaries)" for n in shares("random")]
    lines = [
        f"{one} of the latents of {a} have a counterpart in {b}{chance[0]}, "
        f"and {two} of those of {b} have one in {a}{chance[1]}."
    ]
    lines.append(f"If the images are shuffled, {' and '.join(shares('shuffled'))} have one.")
    one, two = (f"{(side['outcome'] == 'one').sum() / max(len(side), 1):.0%}" for side in sides)
    lines.append(
        f"{one} of the latents of {a} have none, though another seed finds them. "
        f"The same holds for {two} of those of {b}."
    )
    alike = [(layer, row.idxmax(), row.max()) for layer, row in similar(table).iterrows()]
    (layer, there, r), *rest = alike
    line = f"Layer {layer} of {a} is most similar to layer {there} of {b} (mean correlation of best matches {r:.2f})"
    lines.append("".join([line, *(f", layer {layer} to layer {there} ({r:.2f})" for layer, there, r in rest), "."]))
    return lines


def similar(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the similarity of layers, a row per own layer, a column per other layer; mean over k, method and seed."""
    rows = table[table["measure"] == "similarity"]
    means = rows.assign(mean=(rows["value"] + rows["value_other"]) / 2)
    return means.pivot_table("mean", "layer", "other_layer")


def _measured(a: str, b: str, table: pd.DataFrame) -> list[str]:
    rows = table[table["measure"].isin(COMPARED)]
    measures = [key for key in COMPARED if key in set(rows["measure"])]
    if not measures:
        return ["Nothing was measured in both experiments."]
    share = rows.groupby("measure")["verdict"].value_counts(normalize=True).unstack(fill_value=0)
    share = share.reindex(columns=["better", "worse"], fill_value=0) > 0.5
    won = {verdict: [MEASURES[key].name for key in measures if share.loc[key, verdict]] for verdict in share}
    said = [
        f"{name} is better by {len(won[verdict])} of {len(measures)} measures ({', '.join(won[verdict])})"
        for name, verdict in ((a, "better"), (b, "worse"))
        if won[verdict]
    ]
    count = len(rows[_POINT].drop_duplicates())
    where = f"At more than half of the {count} SAEs" if count > 1 else "At the one SAE"
    return [f"{where}, {' and '.join(said) or 'neither experiment is better by any measure'}."]


def page(found: Comparison, figure: str | Path, explorer: str | None) -> str:
    """Returns the comparison as an HTML page, which holds the figure; its small pictures are those of the explorers.

    Args:
        figure: an SVG.
        explorer: the address of the other experiment's explorer; None: it has none, and nothing links to it.
    """
    measured = found.table[found.table["measure"].isin(COMPARED)].astype(object)
    points = [
        {"where": dict(zip(_POINT, point, strict=True)), "rows": part.where(part.notna(), None).to_dict("records")}
        for point, part in measured.groupby(_POINT, sort=True)
    ]
    names = [found.own.name, found.other.name]
    return conclusion.rendered(
        "compare.html",
        f"{names[0]} compared with {names[1]}",
        sentences(found),
        names=names,
        facts=[_facts(one) for one in (found.own, found.other)],
        lists=_lists(found, explorer) if len(found.rows) else [],
        points=points,
        figure=base64.b64encode(Path(figure).read_bytes()).decode(),
        measures=MEASURES,
        found=FOUND,
    )


def _facts(one: Experiment) -> dict[str, str]:
    model, weights = one.reference["model"]["name"], one.reference["weights"]
    told = _WEIGHTS.get(weights, "weights of its own")
    if model == _SHIPPED and weights is None:
        told = "weights that come with the project"
    saes = sorted({(layer, kind) for layer, kind in one.codes if kind in one.kinds})
    rows, columns = one.reference["geometry"]["patches"]
    used = images.used(one.manifest)
    sizes = sorted({one.codes[sae].latents for sae in saes})
    return {
        "ViT": f"{model}, {told}",
        "images": f"{len(used):,}, of which {(used['split'] == images.HELD_OUT).sum():,} are held out",
        "patches": f"{rows} × {columns}",
        "layers": f"{_some(layer for layer, _kind in saes)} of {one.blocks}",
        "k": _some(kind.k for _layer, kind in saes),
        "method": _some(kind.method for _layer, kind in saes),
        "latents of an SAE": _some(sizes),
    }


def _some(values: Any) -> str:
    return ", ".join(map(str, sorted({*values})))


def _lists(found: Comparison, explorer: str | None) -> list[dict[str, Any]]:
    """Returns lists of latents: a title, the columns' names, and rows with a latent, its match and the correlations."""
    key, own, other, latents = ["of", *_POINT, "latent"], found.own, found.other, found.latents
    names = latents.set_index(key)["name"].to_dict()
    of = {
        THIS: (own, "../explorer/index.html", own.top.set_index(key[1:])["image_id"]),
        OTHER: (other, explorer, other.top.set_index(key[1:])["image_id"]),
    }

    def told(side: str, *place: Any) -> dict[str, Any]:
        experiment, page, top = of[side]
        where = dict(zip(key[1:], place, strict=True))
        several = [name for name in _POINT if name == "layer" or len({getattr(k, name) for k in experiment.kinds}) > 1]
        name = names[side, *place]
        return {
            "text": ", ".join([*(f"{name} {where[name]}" for name in several), f"latent {where['latent']}"]),
            "link": page and f"{page}#{urlencode(where)}",
            "pictures": [f"{page.removesuffix('index.html')}pictures/{i}.webp" for i in top.loc[[place]]]
            if page
            else [],
            "name": None if pd.isna(name) else name,
        }

    def listed(title: str, side: str, part: pd.DataFrame) -> dict[str, Any]:
        there = OTHER if side == THIS else THIS
        rows = [
            {
                "latent": told(side, row.layer, row.k, row.method, row.seed, row.latent),
                "match": told(there, row.match_layer, row.match_k, row.match_method, row.match_seed, row.match),
                "numbers": [None if np.isnan(r) else r for r in (row.r, row.random, row.shuffled, row.stability)],
            }
            for row in part.head(_LISTED).itertuples()
        ]
        return {"title": title, "names": [of[side][0].name, of[there][0].name], "rows": rows}

    mine, theirs = (latents[latents["of"] == side] for side in (THIS, OTHER))
    shared = mine[mine["outcome"] == "both"]
    above = (shared["r"] - shared["random"].fillna(shared["shuffled"])).sort_values(ascending=False, kind="stable")
    shared = shared.loc[above.index]  # a match that random directions reach too tells little
    lists = [listed("Latents of both", THIS, shared.drop_duplicates(["match_layer", "match_k", "match"]))]
    for side, part in ((THIS, mine), (OTHER, theirs)):
        best = part.sort_values("r", ascending=False, kind="stable").drop_duplicates(key)  # of several kinds' matches
        alone = best[best["outcome"] == "one"].iloc[::-1]
        lists.append(listed(f"Latents of {of[side][0].name} alone", side, alone))
    return lists
