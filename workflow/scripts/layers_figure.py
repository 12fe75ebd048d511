"""Draws the comparison across the grid."""

import pandas as pd

from sae import figures, jobs

with jobs.job(snakemake):
    figures.save(figures.layers(pd.read_csv(snakemake.input[0])), snakemake.output[0])
