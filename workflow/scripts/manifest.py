"""Labels the images."""

from sae.warm import hand_over

hand_over()

import sys

from sae import files, images, jobs

with jobs.job(snakemake) as provenance:
    table = images.label(images.read_manifest(snakemake.input.images), *jobs.source(snakemake))
    files.write_table(snakemake.output[0], table, provenance())
    print(images.summary(table), file=sys.stderr)
