"""Extracts one layer's activations for one shard."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

import pandas as pd

from sae import device, extraction, images, jobs, vit

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    model = vit.load(**snakemake.config["model"], device=device.resolve(snakemake.config["device"]))
    part = images.shard(pd.read_parquet(snakemake.input.images), int(snakemake.wildcards.shard), settings["shards"])
    extraction.extract(
        model,
        Path(snakemake.input.pixels),
        part["id"].tolist(),
        int(snakemake.wildcards.layer),
        Path(snakemake.output.tokens),
        settings["batch"],
        settings["dtype"],
        provenance,
        part["path"].tolist(),
    )
