"""Draws where latents appear, persist and end across layers."""

import pandas as pd

from sae import jobs
from sae.figures import latents as figures
from sae.figures import matching

point = snakemake.wildcards
with jobs.job(snakemake):
    table = pd.read_parquet(snakemake.input[0])
    found, control = (table[table["shuffled"] == shuffled] for shuffled in (False, True))
    title = f"k {point.k}, {point.method}, seed {point.seed}: latents across layers"
    layers = snakemake.params.settings["layers"]
    figures.save(matching.layers_figure(found, control, layers, title), snakemake.output[0])
