"""Decodes one shard of the images, once, as the model sees them."""

from sae.warm import hand_over

hand_over(wait=30)

from pathlib import Path

from sae import images, jobs, vit

settings = snakemake.params.settings
with jobs.job(snakemake):
    model = vit.load(settings["model"], "random", settings["image_size"])
    manifest = images.read_manifest(snakemake.input.manifest)
    part = images.shard(manifest, int(snakemake.wildcards.shard), settings["shards"])
    images.decode(part, settings["folder"], vit.pixel_transform(model), Path(snakemake.output[0]), snakemake.threads)
