"""Draws the inputs: the images and the ViT."""

from sae.warm import hand_over

hand_over()

import numpy as np
import pandas as pd

from sae import files, jobs
from sae.figures import inputs, style

with jobs.job(snakemake):
    figure = inputs.overview(
        pd.read_parquet(snakemake.input.manifest),
        files.read_json(snakemake.input.reference),
        snakemake.params.settings["model"]["name"],
        np.load(snakemake.input.pixels, mmap_mode="r"),
    )
    style.save(figure, snakemake.output[0])
