"""Draws the top-image sheet of one SAE."""

from pathlib import Path

import pandas as pd

import sae
from sae import files, images, jobs
from sae.activations import Activations
from sae.evidence import ranking
from sae.figures import latents as figures
from sae.geometry import Geometry

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake):
    encoder = sae.load(Path(snakemake.input.sae).parent)
    manifest = pd.read_parquet(snakemake.input.manifest)
    latents, found = (pd.read_parquet(snakemake.input[name]) for name in ("latents", "images"))
    groups = figures.choose_latents(latents, settings["latents"], settings["flagged"])
    shown = figures.shown(found, [latent for part in groups.values() for latent in part], settings["images"])
    wanted = shown.groupby("image_id")["latent"].agg(list).to_dict()
    heat = {}
    if wanted:
        grid = Geometry(**files.read_json(snakemake.input.model)["geometry"])
        x = Activations.open(snakemake.input.shards, encoder.config.tokens, list(wanted), verify=False)
        heat = ranking.heat_maps(encoder, x, wanted, grid)
    figure = figures.sheet(
        groups,
        latents,
        shown,
        manifest,
        images.pictures(manifest, snakemake.input.pixels, list(wanted)),
        heat,
        f"Layer {point.layer}, k {point.k}, {point.method}, seed {point.seed}: what latents respond to",
    )
    figures.save(figure, snakemake.output[0])
