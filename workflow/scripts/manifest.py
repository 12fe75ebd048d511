"""Lists the images: labels, splits, and what is wrong with which."""

from sae.warm import hand_over

hand_over()

import sys

from sae import files, images, jobs

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    table = images.build_manifest(settings["folder"], settings["labels"], settings["held_out"], snakemake.threads)
    files.write_table(snakemake.output[0], table, provenance())
    print(images.summary(table), file=sys.stderr)
