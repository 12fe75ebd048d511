"""Draws the training curves of one SAE."""

import pandas as pd

from sae import figures, jobs

point = snakemake.wildcards
with jobs.job(snakemake):
    title = f"Layer {point.layer}, k {point.k}, {point.method}, seed {point.seed}"
    figures.save(figures.training(pd.read_csv(snakemake.input[0]), title), snakemake.output[0])
