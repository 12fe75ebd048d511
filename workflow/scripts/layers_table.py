"""Puts the grid's metrics into one table."""

from sae.warm import hand_over

hand_over()

from sae import files, jobs

with jobs.job(snakemake), files.whole(snakemake.output[0]) as part:
    table = files.read_points(snakemake.input).drop(columns="density_histogram")
    table.set_index(["layer", "k", "method", "seed"]).sort_index().to_csv(part)
