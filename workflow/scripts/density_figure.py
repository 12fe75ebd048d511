"""Draws how often the latents of one dictionary fire."""

from sae.warm import hand_over

hand_over()

import pandas as pd

from sae import jobs
from sae.figures import latents, style

point = snakemake.wildcards
with jobs.job(snakemake):
    title = f"Layer {point.layer}, k {point.k}, {point.method}, seed {point.seed}: density of the latents"
    style.save(latents.density(pd.read_parquet(snakemake.input[0]), title), snakemake.output[0])
