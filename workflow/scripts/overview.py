"""Draws what went in: images, model."""

import numpy as np
import pandas as pd

from sae import files, images, jobs
from sae.figures import latents as figures

settings = snakemake.params.settings
with jobs.job(snakemake):
    manifest = pd.read_parquet(snakemake.input.manifest)
    figure = figures.overview(
        manifest,
        files.read_json(snakemake.input.model),
        settings["model"]["name"],
        np.load(snakemake.input.pixels, mmap_mode="r"),
        images.shard(manifest, 0, settings["shards"])["id"].to_numpy(),
    )
    figures.save(figure, snakemake.output[0])
