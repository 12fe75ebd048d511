"""Puts the grid's metrics into one table."""

import pandas as pd

from sae import files, jobs

with jobs.job(snakemake), files.whole(snakemake.output[0]) as part:
    table = pd.read_parquet(list(snakemake.input), partitioning="hive")
    table = table.astype({"layer": int, "k": int, "method": str}).drop(columns="density_histogram")
    table.set_index(["layer", "k", "method", "seed"]).sort_index().to_csv(part)
