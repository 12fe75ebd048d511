"""Ranks images, patches and classes for every latent of one SAE."""

from pathlib import Path

import pandas as pd

import sae
from sae import device, files, images, jobs, ranking
from sae.activations import Activations
from sae.geometry import Geometry

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    encoder = sae.load(Path(snakemake.input.sae).parent, device.resolve(settings["device"]))
    manifest = images.used(pd.read_parquet(snakemake.input.manifest))
    tokens = Activations.open(snakemake.input.shards, encoder.settings.tokens, manifest["id"])
    grid = Geometry(**files.read_json(snakemake.input.model)["geometry"])
    found = ranking.rank(encoder, tokens, manifest, grid, settings["images"], settings["classes"])
    for name in ("latents", "images", "classes"):
        files.write_table(snakemake.output[name], getattr(found, name), provenance())
