"""Extracts one layer's activations for one shard."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

from sae import device, extraction, images, jobs, shards, vit
from sae.evidence import splice

settings, out = snakemake.params.settings, snakemake.output
with jobs.job(snakemake) as provenance:
    model = vit.load(**snakemake.config["model"], device=device.resolve(snakemake.config["device"]))
    table = images.read_manifest(snakemake.input.images)
    part, drawn = images.shard(table, int(snakemake.wildcards.shard), settings["shards"]), None
    if limits := settings["limits"]:
        whole = images.ranked(table, splice.sample(table, limits["sample"]))["id"].to_numpy()
        geometry = vit.geometry(model)
        tokens = geometry.select(limits["tokens"]), geometry.roles, limits["tokens_per_image"], limits["seed"]
        drawn = shards.draw(part, whole, *tokens, Path(out.drawn))
    extraction.extract(
        model,
        Path(snakemake.input.pixels),
        dict(zip(part["id"], part["path"], strict=True)),
        int(snakemake.wildcards.layer),
        Path(out.tokens),
        settings["batch"],
        settings["dtype"],
        provenance,
        drawn,
    )
