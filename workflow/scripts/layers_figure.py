"""Draws the comparison across the grid."""

from sae.warm import hand_over

hand_over()

import pandas as pd

from sae import files, jobs
from sae.figures import grid, style

with jobs.job(snakemake):
    summaries = files.read_points(snakemake.input.summaries)
    fvu = summaries[summaries["measure"] == "fvu"]
    intervals = fvu.groupby(["layer", "k", "method"], as_index=False)[["low", "high"]].mean()
    style.save(grid.layers(pd.read_csv(snakemake.input.table), intervals), snakemake.output[0])
