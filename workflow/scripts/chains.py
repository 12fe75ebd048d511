"""Follows latents from layer to layer, on held-out images; and by chance, with the images of every layer shuffled."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

import sae
from sae import codes, device, files, jobs
from sae.activations import Activations
from sae.evidence import matching

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    saes = [sae.load(Path(path).parent, device.resolve(settings["device"])) for path in snakemake.input.saes]
    ids = files.read_json(snakemake.input.model)["ids"]
    z = []
    for one in saes:
        shards = [path for path in snakemake.input.shards if f"/layer={one.config.layer}/" in path]
        x = Activations.open(shards, one.config.tokens, ids, verify=False)
        z.append(codes.encode(one, x).z)
    fired, rng, tables = [part.sum(0) > 0 for part in z], np.random.default_rng(0), []
    for shuffled in (False, True):
        pairs = ((a, matching.shuffled_rows(b, x.tokens, rng) if shuffled else b) for a, b in pairwise(z))
        table = matching.chains([matching.correlation(a, b) for a, b in pairs], fired)
        tables.append(table.assign(layer=np.array(settings["layers"])[table["position"]], shuffled=shuffled))
    files.write_table(snakemake.output[0], pd.concat(tables, ignore_index=True), provenance())
