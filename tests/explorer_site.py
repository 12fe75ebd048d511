"""A whole explorer, made in seconds: pictures with hostile names, two layers, two ks, two seeds, a baseline."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import timm
from PIL import Image

import sae
from sae import activations, codes, extraction, images, points, vit
from sae.evidence import matching, splice
from sae.explorer import page, parts, point

HOSTILE = ("<img src=x onerror=boom()>", "'; boom()//", '=1+1, "quoted"')
LATENTS = 40
LAYERS, KS, SEEDS = (0, 1), (2, 4), (0, 1)


@dataclass(frozen=True)
class Site:
    folder: Path
    layers: dict[int, points.Layer]
    saes: dict[tuple[int, int, int], sae.SparseAutoencoder]
    tables: dict[tuple[int, int, int], point.Tables]
    metrics: pd.DataFrame

    @property
    def url(self) -> str:
        return (self.folder / "index.html").as_uri()


def build(folder: Path, tokens: str = "patches", count: int = 72) -> Site:
    """Writes the explorer under folder/explorer and returns all that went into it."""
    rng = np.random.default_rng(0)
    pictures = folder / "pictures"
    for i in range(count):
        path = pictures / HOSTILE[i % 3] / f'{i}" onload="boom() &amp; <b>.png'
        if i % 3 == 1:
            path = pictures / HOSTILE[1].replace("/", "") / path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 90, (64, 64, 3))
        row, column = rng.integers(0, 3, 2) * 16
        pixels[row : row + 32, column : column + 32, i % 3] += 160  # a class is the colour of a square somewhere
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    manifest = images.build_manifest(pictures)
    ids = images.used(manifest)["id"].tolist()
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=3).eval().requires_grad_(False)
    shown = np.stack([np.asarray(Image.open(pictures / path)) for path in images.used(manifest)["path"]])
    np.save(folder / "pixels.npy", shown)
    held_out = splice.sample(manifest, 100)
    logits = splice.predict(model, [folder / "pixels.npy"], manifest, held_out)
    facts = {"geometry": asdict(vit.geometry(model)), "ids": held_out}
    train = images.used(manifest, images.TRAIN)["id"]
    layers, saes = {}, {}
    for layer in LAYERS:
        shard = folder / f"layer={layer}.npy"
        extraction.extract(model, folder / "pixels.npy", ids, layer, shard)
        statistics = activations.statistics([shard], tokens, train)
        layers[layer] = points.Layer([shard], manifest, facts, statistics)
        x = layers[layer].tokens(tokens, train)
        for k in KS:
            for seed in SEEDS:
                options = {"layer": layer, "tokens": tokens, "centre": layers[layer].centre, "batch": 32, "epochs": 4}
                saes[layer, k, seed] = sae.train(x, k, LATENTS, seed=seed, **options)
    tables, metrics, summaries = _measured(layers, saes, model, logits, tokens)
    site = folder / "explorer"
    for (layer, k, seed), known in tables.items():
        here = {"layer": layer, "k": k, "method": "topk", "seed": seed}
        point.write(site / "data", here, saes[layer, k, seed], layers[layer], known, SEEDS, 60)
    opened = point.openable(manifest, 60)["id"].tolist()
    pictured = sorted({*opened, *(i for known in tables.values() for i in known.images["image_id"])})
    told = {"name": "hostile", "model": "vit", "tokens": tokens, "geometry": facts["geometry"]}
    parts.write(site / "data", "grid", page.grid(metrics, summaries, ["topk"], ["pca"], told))
    parts.write(site / "data", "images", page.image_list(manifest, opened, pictured))
    page.pictures(site / "pictures", manifest, [folder / "pixels.npy"], pictured)
    page.app(site / "app")
    page.page(site / "index.html")
    return Site(site, layers, saes, tables, metrics)


def _measured(layers, saes, model, logits, tokens):
    """Returns the tables by point, and the metrics and summaries of all, a baseline among them."""
    e = np.random.default_rng(1).standard_normal((len(next(iter(layers.values())).ranked), 6))
    z = {key: codes.encode(m, layers[key[0]].tokens(tokens, layers[key[0]].model["ids"])).z for key, m in saes.items()}
    tables, metrics, summaries = {}, [], []
    for (layer, k, seed), m in saes.items():
        here, other = layers[layer], 1 - seed
        where = {"layer": layer, "k": k, "seed": seed}
        ranking = points.ranked(m, {other: saes[layer, k, other]}, seed, here, 6, 5, 4)
        found = points.gather(m, saes[layer, k, other], here, model, ranking, e, None, 5, 2)
        row = points.evaluate(m, here, model, logits, [1], 16)[0]
        for method, shift in (("topk", 0.0), ("pca", 0.1)):  # the page does not ask how a baseline came about
            metrics.append(row | where | {"method": method, "fvu": row["fvu"] + shift})
            summaries.append(found.summary.assign(**where, method=method))
        fates = [
            matching.fates(
                matching.correlation(z[layer, a, seed], z[layer, b, seed]), z[layer, a, seed].sum(0) > 0
            ).assign(k=a, next_k=b)
            for a, b in pairwise(KS)
        ]
        along = [z[one, k, seed] for one in LAYERS]
        chains = matching.chains(
            [matching.correlation(a, b) for a, b in pairwise(along)], [part.sum(0) > 0 for part in along]
        )
        chains = chains.assign(layer=np.array(LAYERS)[chains["position"]], shuffled=False)
        tables[layer, k, seed] = point.Tables(
            ranking.latents,
            ranking.images,
            ranking.classes,
            found.scores,
            found.causes,
            found.effects,
            pd.concat(fates),
            chains,
        )
    return tables, pd.DataFrame(metrics), pd.concat(summaries, ignore_index=True)
