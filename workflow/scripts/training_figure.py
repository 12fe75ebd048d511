"""Draws the training curves of one SAE."""

from sae.warm import hand_over

hand_over()

import pandas as pd

from sae import jobs
from sae.figures import inputs, style

point = snakemake.wildcards
with jobs.job(snakemake):
    title = f"Layer {point.layer}, k {point.k}, {point.method}, seed {point.seed}"
    style.save(inputs.training(pd.read_csv(snakemake.input[0]), title), snakemake.output[0])
