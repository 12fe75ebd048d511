"""Draws the comparison across the grid."""

import pandas as pd

from sae import jobs
from sae.figures import grid
from sae.figures import latents as figures

with jobs.job(snakemake):
    summaries = jobs.grid(snakemake.input.summaries)
    fvu = summaries[summaries["measure"] == "fvu"]
    intervals = fvu.groupby(["layer", "k", "method"], as_index=False)[["low", "high"]].mean()
    figure = grid.layers(pd.read_csv(snakemake.input.table), intervals)
    figures.save(figure, snakemake.output[0])
