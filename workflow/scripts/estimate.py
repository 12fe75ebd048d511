"""Prints the jobs, the time, the memory and the disk that a run would take."""

from sae.warm import hand_over

hand_over()

import sys
from pathlib import Path

from sae import estimate, jobs, vit

with jobs.job(snakemake):
    geometry = vit.geometry(vit.load(**snakemake.config["model"] | {"checkpoint": "random"}))
    told = estimate.estimate(snakemake.config, geometry, Path(snakemake.params.results), snakemake.threads)
    print(told, file=sys.stderr)
