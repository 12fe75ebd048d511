"""Says what becomes of each latent from one k to the next, on held-out images."""

from itertools import pairwise
from pathlib import Path

import pandas as pd

import sae
from sae import codes, device, files, jobs
from sae.activations import Activations
from sae.evidence import matching

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    saes = [sae.load(Path(path).parent, device.resolve(settings["device"])) for path in snakemake.input.saes]
    ids = files.read_json(snakemake.input.model)["ids"]
    x = Activations.open(snakemake.input.shards, saes[0].config.tokens, ids, verify=False)
    z = [codes.encode(one, x).z for one in saes]
    tables = []
    for (a, b), (k, next_k) in zip(pairwise(z), pairwise(settings["ks"]), strict=True):
        table = matching.fates(matching.correlation(a, b), a.sum(0) > 0)
        tables.append(table.assign(k=k, next_k=next_k))
    files.write_table(snakemake.output[0], pd.concat(tables, ignore_index=True), provenance())
