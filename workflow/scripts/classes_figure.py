"""Draws the classes of the latents that the top-image sheet shows."""

import pandas as pd

from sae import jobs
from sae.figures import latents as figures

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake):
    latents, classes = (pd.read_parquet(snakemake.input[name]) for name in ("latents", "classes"))
    groups = figures.choose_latents(latents, settings["latents"], settings["flagged"])
    title = f"Layer {point.layer}, k {point.k}, {point.method}, seed {point.seed}: their classes"
    figures.save(figures.class_bars(groups, latents, classes, title), snakemake.output[0])
