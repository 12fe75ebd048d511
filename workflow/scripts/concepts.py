"""Draws the built-in images with their ground truth."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

from sae import concepts, files, jobs

settings = snakemake.params.settings
with jobs.job(snakemake), files.whole(snakemake.output[0]) as folder:
    concepts.write(Path(folder), settings["count"], settings["seed"])
