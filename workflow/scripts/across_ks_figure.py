"""Draws the outcome of latents at the next k."""

from sae.warm import hand_over

hand_over()

import pandas as pd

from sae import jobs
from sae.figures import matching, style

point = snakemake.wildcards
with jobs.job(snakemake):
    table = pd.read_parquet(snakemake.input[0])
    pairs = {f"k {k} → {next_k}": part for (k, next_k), part in table.groupby(["k", "next_k"])}
    title = f"Layer {point.layer}, {point.method}, seed {point.seed}: outcomes of the latents at the next k"
    style.save(matching.across_ks(pairs, title), snakemake.output[0])
