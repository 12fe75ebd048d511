"""Draws one layer's statistics."""

from sae import files, jobs
from sae.figures import latents as figures

with jobs.job(snakemake):
    figure = figures.statistics(files.read_json(snakemake.input[0]), int(snakemake.wildcards.layer))
    figures.save(figure, snakemake.output[0])
