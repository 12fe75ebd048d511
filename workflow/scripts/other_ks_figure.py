"""Draws what each SAE reconstructs with more or fewer latents than it was trained for."""

import pandas as pd

from sae import jobs
from sae.figures import grid
from sae.figures import latents as figures

with jobs.job(snakemake):
    table = pd.read_parquet(list(snakemake.input), partitioning="hive").astype({"layer": int, "k": int, "method": str})
    figures.save(grid.other_ks(table), snakemake.output[0])
