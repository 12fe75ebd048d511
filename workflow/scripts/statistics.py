"""Computes statistics of one layer's activations, and warns where they are unhealthy."""

from sae.warm import hand_over

hand_over()

import sys

from sae import files, images, jobs, statistics

with jobs.job(snakemake) as provenance:
    train = images.used(images.read_manifest(snakemake.input.images), images.TRAIN)
    inputs = snakemake.input
    facts = statistics.of_tokens(inputs.shards, snakemake.params.settings["tokens"], train["id"], inputs.whole)
    for warning in facts["warnings"]:
        print(f"layer {snakemake.wildcards.layer}: {warning}", file=sys.stderr)
    files.write_json(snakemake.output[0], facts | {"provenance": provenance()})
