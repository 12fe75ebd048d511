"""Draws the FVU of each SAE with more or fewer active latents than it was trained for."""

from sae.warm import hand_over

hand_over()

import pandas as pd

from sae import jobs
from sae.figures import grid, style

with jobs.job(snakemake):
    table = pd.read_parquet(list(snakemake.input), partitioning="hive").astype({"layer": int, "k": int, "method": str})
    style.save(grid.other_ks(table), snakemake.output[0])
