"""Extracts one layer's activations for one shard."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

from sae import device, extraction, images, jobs, vit

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    model = vit.load(**snakemake.config["model"], device=device.resolve(snakemake.config["device"]))
    table = images.read_manifest(snakemake.input.images)
    part = images.shard(table, int(snakemake.wildcards.shard), settings["shards"])
    extraction.extract(
        model,
        Path(snakemake.input.pixels),
        dict(zip(part["id"], part["path"], strict=True)),
        int(snakemake.wildcards.layer),
        Path(snakemake.output.tokens),
        settings["batch"],
        settings["dtype"],
        provenance,
    )
