"""Draws the classes of the latents that the sheet of top images shows."""

from sae.warm import hand_over

hand_over()

import pandas as pd

from sae import jobs
from sae.figures import latents as sheets
from sae.figures import style

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake):
    latents, classes = (pd.read_parquet(snakemake.input[name]) for name in ("latents", "classes"))
    groups = sheets.choose_latents(latents, settings["latents"])
    title = f"Layer {point.layer}, k {point.k}, {point.method}, seed {point.seed}: the classes of single latents"
    style.save(sheets.class_bars(groups, latents, classes, title), snakemake.output[0])
