"""Draws how often the latents of one SAE fire."""

import pandas as pd

from sae import jobs
from sae.figures import latents as figures

point = snakemake.wildcards
with jobs.job(snakemake):
    title = f"Layer {point.layer}, k {point.k}, {point.method}, seed {point.seed}"
    figures.save(figures.density(pd.read_parquet(snakemake.input[0]), title), snakemake.output[0])
