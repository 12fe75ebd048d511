"""Estimates which latents of a layer raise those of the next layer of the grid, and checks a sample by removal."""

from sae.warm import hand_over

hand_over()

from itertools import pairwise
from pathlib import Path

import pandas as pd

import sae
from sae import device, files, jobs, vit
from sae.evidence import edges
from sae.geometry import Geometry
from sae.store import Activations

settings, inputs = snakemake.params.settings, snakemake.input
with jobs.job(snakemake) as provenance:
    where = device.resolve(snakemake.config["device"])
    model, reference = vit.load(**snakemake.config["model"], device=where), files.read_json(inputs.reference)
    chosen, sample = Geometry(**reference["geometry"]).select(settings["tokens"]), reference["ids"]
    sides = [
        edges.Side(layer, sae.load(Path(weights).parent, where), sae.codes(Path(codes).parent).of(sample))
        for layer, weights, codes in zip(settings["layers"], inputs.sae, inputs.codes, strict=True)
    ]
    tables = []
    for source, target in pairwise(sides):
        shards = [path for path in inputs.shards if f"/layer={source.layer}/" in path]
        x = Activations.open(shards, "all", sample, verify=False)
        sizes = {name: settings[name] for name in ("latents", "images", "batch")}
        table = edges.edges(model, source, target, x, chosen, **sizes)
        tables.append(table.assign(layer=source.layer, next_layer=target.layer))
    files.write_table(snakemake.output[0], pd.concat(tables, ignore_index=True), provenance())
