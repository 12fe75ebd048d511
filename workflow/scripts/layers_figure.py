"""Draws the comparison across the grid."""

import pandas as pd

from sae import figures, grid_figures, jobs

with jobs.job(snakemake):
    figures.save(grid_figures.layers(pd.read_csv(snakemake.input[0])), snakemake.output[0])
