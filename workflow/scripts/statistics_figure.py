"""Draws one layer's statistics."""

from sae.warm import hand_over

hand_over()

from sae import files, jobs
from sae.figures import inputs, style

with jobs.job(snakemake):
    figure = inputs.statistics(files.read_json(snakemake.input[0]), int(snakemake.wildcards.layer))
    style.save(figure, snakemake.output[0])
