"""Puts the grid's metrics into one table."""

import pandas as pd

from sae import files, jobs

with jobs.job(snakemake), files.whole(snakemake.output[0]) as part:
    table = pd.concat([pd.read_parquet(path) for path in snakemake.input], ignore_index=True)
    table = table.drop(columns="density_histogram").sort_values(["layer", "k", "method", "seed"])
    table.to_csv(part, index=False)
