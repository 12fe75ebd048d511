"""Computes the directions of one layer's baselines, which are the same for all ks."""

from sae.warm import hand_over

hand_over()

import numpy as np

from sae import baselines, files, images, jobs
from sae.store import Activations

settings = snakemake.params.settings
with jobs.job(snakemake):
    train = images.used(images.read_manifest(snakemake.input.images), images.TRAIN)
    x = Activations.open(snakemake.input.shards, settings["tokens"], train["id"], verify=False)
    statistics = files.read_json(snakemake.input.statistics)
    centre = np.array(statistics["mean"]), statistics["scale"]
    latents, seed = round(settings["expansion"] * x.width), int(snakemake.wildcards.seed)
    rows = {method: baselines.directions(x, latents, method, centre, seed) for method in settings["methods"]}
    files.write_arrays(snakemake.output[0], rows)
