"""Follows latents from layer to layer on held-out images, and by chance: with the images of every layer shuffled."""

from sae.warm import hand_over

hand_over()

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

import sae
from sae import files, jobs
from sae.evidence import matching

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    sample = files.read_json(snakemake.input.reference)["ids"]
    codes = [sae.codes(Path(path).parent).of(sample) for path in snakemake.input.codes]
    fired, rng, tables = [part.z.sum(0) > 0 for part in codes], np.random.default_rng(0), []
    for shuffled in (False, True):
        pairs = [(a.z, matching.shuffled_rows(b.z, b.tokens, rng) if shuffled else b.z) for a, b in pairwise(codes)]
        table = matching.across_layers([matching.correlation(a, b) for a, b in pairs], fired)
        tables.append(table.assign(layer=np.array(settings["layers"])[table["position"]], shuffled=shuffled))
    files.write_table(snakemake.output[0], pd.concat(tables, ignore_index=True), provenance())
