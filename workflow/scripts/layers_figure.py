"""Draws the comparison across the grid."""

import pandas as pd

from sae import figures, grid_figures, jobs

with jobs.job(snakemake):
    summaries = jobs.grid(snakemake.input.summaries)
    fvu = summaries[summaries["measure"] == "fvu"]
    intervals = fvu.groupby(["layer", "k", "method"], as_index=False)[["low", "high"]].mean()
    figure = grid_figures.layers(pd.read_csv(snakemake.input.table), intervals)
    figures.save(figure, snakemake.output[0])
