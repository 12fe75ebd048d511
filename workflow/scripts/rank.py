"""Ranks images, patches and classes for every latent of one SAE, and finds each again in SAEs of other seeds."""

from pathlib import Path

import sae
from sae import device, files, jobs, points

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake) as provenance:
    where = device.resolve(settings["device"])
    encoder = sae.load(Path(snakemake.input.sae).parent, where)
    others = {points.seed_of(path): sae.load(Path(path).parent, where) for path in snakemake.input.others}
    layer = points.Layer.read(snakemake.input)
    found = points.ranked(
        encoder, others, int(point.seed), layer, settings["images"], settings["classes"], settings["support"]
    )
    for name, table in points.tables(found, layer).items():
        files.write_table(snakemake.output[name], table, provenance())
