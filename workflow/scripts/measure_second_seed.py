"""Encodes the held-out sample by dictionaries of a seed that only serves comparison."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

import sae
from sae import device, files, jobs, measure
from sae.store import Activations

with jobs.job(snakemake) as provenance:
    where = device.resolve(snakemake.config["device"])
    sample = files.read_json(snakemake.input.reference)["ids"]
    tokens = files.read_json(snakemake.input.statistics)["tokens"]
    x = Activations.open(snakemake.input.shards, tokens, sample, verify=False)
    pairs = zip(jobs.listed(snakemake.input.sae), jobs.listed(snakemake.output.codes), strict=True)
    for path, out in pairs:
        codes = measure.encode(sae.load(Path(path).parent, where), x)
        codes.save(Path(out).parent, provenance())
