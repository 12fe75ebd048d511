"""Extracts one layer's activations for one shard."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

import numpy as np

from sae import device, extraction, images, jobs, shards, vit
from sae.evidence import splice

settings, out = snakemake.params.settings, snakemake.output
with jobs.job(snakemake) as provenance:
    model = vit.load(**snakemake.config["model"], device=device.resolve(snakemake.config["device"]))
    table = images.read_manifest(snakemake.input.images)
    here = images.shard(table, int(snakemake.wildcards.shard), settings["shards"])
    parts = [shards.Part(Path(out.tokens), here["id"])]
    if limits := settings["limits"]:
        whole = images.ranked(table, splice.sample(table, limits["sample"]))["id"].to_numpy()
        geometry = vit.geometry(model)
        tokens = np.arange(len(geometry.roles))[geometry.select(limits["tokens"])]
        drawn = limits["tokens_per_image"], limits["seed"]
        parts = shards.limited(here, whole, tokens, *drawn, Path(out.tokens), Path(out.drawn))
    extraction.extract(
        model,
        Path(snakemake.input.pixels),
        parts,
        int(snakemake.wildcards.layer),
        settings["batch"],
        settings["dtype"],
        here["path"].tolist(),
        provenance,
    )
