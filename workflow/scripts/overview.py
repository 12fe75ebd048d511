"""Draws the inputs: the images and the ViT."""

from sae.warm import hand_over

hand_over()

import numpy as np

from sae import files, images, jobs
from sae.figures import inputs, style

with jobs.job(snakemake):
    figure = inputs.overview(
        images.read_manifest(snakemake.input.manifest),
        files.read_json(snakemake.input.reference),
        snakemake.params.settings["model"]["name"],
        np.load(snakemake.input.pixels, mmap_mode="r"),
    )
    style.save(figure, snakemake.output[0])
