"""A whole explorer, made in seconds: pictures with hostile names, two layers, two ks, two seeds, a baseline."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import conftest
import numpy as np
import pandas as pd
import small
import timm
from PIL import Image

import sae
from sae import images, measure
from sae.evidence import compare, judge, matching
from sae.explorer import class_pages, elsewhere, page, parts, point
from sae.latent_codes import Codes

HOSTILE = ("<img src=x onerror=boom()>", "'; boom()//", '=1+1, "quoted"')
LATENTS = 40
LAYERS, KS, SEEDS = (0, 1), (2, 4), (0, 1)


@dataclass(frozen=True)
class Site:
    folder: Path
    codes: dict[tuple[int, int, int], Codes]
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
    manifest = conftest.manifest(pictures, held_out=0.2)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=3).eval().requires_grad_(False)
    np.save(folder / "pixels.npy", [np.asarray(Image.open(pictures / path)) for path in images.used(manifest)["path"]])
    layers, saes, measured, evidence = {}, {}, {}, {}
    for layer in LAYERS:
        layers[layer] = small.setup(folder, vit, manifest, layer, tokens, LATENTS, ks=[1], latents=5, images=2)
        for k in KS:
            config = sae.TrainConfig(k, LATENTS, batch=32, epochs=4)
            here = {seed: small.train(layers[layer], layer, config, seed) for seed in SEEDS}
            for seed in SEEDS:
                saes[layer, k, seed] = here[seed]
                key = layer, k, seed
                measured[key], evidence[key] = small.judged(layers[layer], here, seed, judge.Limits(6, 5, 4))
    sample = layers[0].layer.sample
    tables, metrics, summaries = _compared(measured, evidence, sample)
    site, geometry = folder / "explorer", layers[0].layer.geometry
    opened = point.openable(manifest, 60)["id"].to_numpy()
    for key, known in tables.items():
        where = dict(zip(("layer", "k", "seed"), key, strict=True)) | {"method": "topk"}
        codes, decoder = measured[key].codes, saes[key].W_dec.numpy()
        effects = layers[0].layer.sample, measured[key].attributions, {}
        about = point.Point(where, tokens, geometry, codes, decoder, known, *effects, SEEDS)
        point.write(site / "data" / f"layer={key[0]}/k={key[1]}/method=topk/seed={key[2]}", about, manifest, opened)
    pictured = sorted({*opened.tolist(), *(i for known in tables.values() for i in known.images["image_id"])})
    told = {"name": "hostile", "model": "vit", "tokens": tokens, "geometry": asdict(geometry)}
    told["classes"] = class_pages.menu(manifest)
    parts.write(site / "data", "grid", page.grid(metrics, summaries, ["topk"], ["pca"], told))
    parts.write(site / "data", "images", page.image_list(manifest, opened.tolist(), pictured))
    page.pictures(site / "pictures", manifest, [folder / "pixels.npy"], pictured)
    page.app(site / "app")
    page.page(site / "index.html")
    twin = _experiment("twin", manifest, measured, evidence, summaries)
    elsewhere.write(site / "data/compare", compare.compare(twin, twin), None)
    return Site(site, {key: one.codes for key, one in measured.items()}, tables, metrics)


def _experiment(
    name: str,
    manifest: pd.DataFrame,
    measured: dict[tuple[int, int, int], measure.Measured],
    evidence: dict[tuple[int, int, int], dict[str, pd.DataFrame]],
    summaries: pd.DataFrame,
) -> compare.Experiment:
    codes = {(layer, compare.Kind(k, "topk", seed)): one.codes for (layer, k, seed), one in measured.items()}
    latents = [
        known["latents"][compare.READ].assign(layer=layer, k=k, method="topk", seed=seed)
        for (layer, k, seed), known in evidence.items()
    ]
    reference = {"geometry": {"blocks": len(LAYERS)}}
    return compare.Experiment(name, reference, manifest, codes, summaries, pd.concat(latents), pd.DataFrame())


def _compared(
    measured: dict[tuple[int, int, int], measure.Measured],
    evidence: dict[tuple[int, int, int], dict[str, pd.DataFrame]],
    sample: np.ndarray,
) -> tuple[dict[tuple[int, int, int], point.Tables], pd.DataFrame, pd.DataFrame]:
    """Returns the tables by point, and the metrics and summaries of all, a baseline among them."""
    z = {key: one.codes.of(sample).z for key, one in measured.items()}
    tables, metrics, summaries = {}, [], []
    for (layer, k, seed), known in evidence.items():
        where = {"layer": layer, "k": k, "seed": seed}
        row = measured[layer, k, seed].metrics
        for method, shift in (("topk", 0.0), ("pca", 0.1)):  # the page does not ask how a baseline came about
            metrics.append(row | where | {"method": method, "fvu": row["fvu"] + shift})
            summaries.append(known["summary"].assign(**where, method=method))
        across_ks = [
            matching.across_ks(
                matching.correlation(z[layer, a, seed], z[layer, b, seed]), z[layer, a, seed].sum(0) > 0
            ).assign(k=a, next_k=b)
            for a, b in pairwise(KS)
        ]
        along = [z[one, k, seed] for one in LAYERS]
        across_layers = matching.across_layers(
            [matching.correlation(a, b) for a, b in pairwise(along)], [part.sum(0) > 0 for part in along]
        )
        across_layers = across_layers.assign(layer=np.array(LAYERS)[across_layers["position"]], shuffled=False)
        names = ("latents", "images", "classes", "best_latents", "monosemanticity", "interventions", "effects")
        names += ("attributions", "localisation")
        known = {name: known[name] for name in names}
        a, b = (evidence[one, k, seed]["latents"].query("status == 'alive'")["latent"].to_numpy() for one in LAYERS[:2])
        edges = pd.DataFrame(
            {"layer": LAYERS[0], "next_layer": LAYERS[1], "target": b[[0, 0, 1, 2]], "latent": a[[1, 2, 2, 1]]}
            | {"share": [0.5, -0.2, 0.4, 0.1], "control": 0.05, "removed": [0.45, -0.1, np.nan, 0.2], "images": 4}
        )
        tables[layer, k, seed] = point.Tables(
            **known, across_ks=pd.concat(across_ks), across_layers=across_layers, edges=edges
        )
    return tables, pd.DataFrame(metrics), pd.concat(summaries, ignore_index=True)
