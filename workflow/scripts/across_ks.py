"""Matches the latents of one k with those of the next, on held-out images."""

from sae.warm import hand_over

hand_over()

from itertools import pairwise
from pathlib import Path

import pandas as pd

import sae
from sae import files, jobs
from sae.evidence import matching

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    sample = files.read_json(snakemake.input.reference)["ids"]
    z = [sae.codes(Path(path).parent).of(sample).z for path in snakemake.input.codes]
    tables = []
    for (a, b), (k, next_k) in zip(pairwise(z), pairwise(settings["ks"]), strict=True):
        table = matching.across_ks(matching.correlation(a, b), a.sum(0) > 0)
        tables.append(table.assign(k=k, next_k=next_k))
    files.write_table(snakemake.output[0], pd.concat(tables, ignore_index=True), provenance())
