"""Draws where latents are new, go on and end across layers."""

from sae.warm import hand_over

hand_over()

import pandas as pd

from sae import jobs
from sae.figures import matching, style

point = snakemake.wildcards
with jobs.job(snakemake):
    table = pd.read_parquet(snakemake.input[0])
    matches, control = (table[table["shuffled"] == shuffled] for shuffled in (False, True))
    title = f"k {point.k}, {point.method}, seed {point.seed}: latents followed across layers"
    layers = snakemake.params.settings["layers"]
    style.save(matching.across_layers(matches, control, layers, title), snakemake.output[0])
