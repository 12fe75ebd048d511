"""Decodes one shard of the images, once, as the model sees them."""

from sae.warm import hand_over

hand_over(wait=30)

from pathlib import Path

from sae import feasibility, images, jobs, vit
from sae.images.pixels import decode

asked = snakemake.config
with jobs.job(snakemake):
    model = vit.load(**asked["model"] | {"checkpoint": "random"})
    table = images.read_manifest(snakemake.input.images)
    feasibility.check(asked, vit.geometry(model), len(images.used(table, images.TRAIN)))
    part = images.shard(table, int(snakemake.wildcards.shard), asked["shards"])
    decode(part, jobs.source(snakemake)[0], vit.pixel_transform(model), Path(snakemake.output[0]), snakemake.threads)
