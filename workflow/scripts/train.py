"""Trains the SAE of one grid point."""

from pathlib import Path

import numpy as np
import pandas as pd

from sae import files, images, jobs, training
from sae.activations import Activations

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake) as provenance:
    train = images.used(pd.read_parquet(snakemake.input.manifest), images.TRAIN)
    statistics = files.read_json(snakemake.input.statistics)
    options = dict(settings["training"])
    shape = settings["sae"]
    sae = training.train(
        Activations.open(snakemake.input.shards, settings["tokens"], train["id"]),
        k=int(point.k),
        latents=round(shape["expansion"] * len(statistics["mean"])),
        method=point.method,
        seed=int(point.seed),
        device=settings["device"],
        layer=int(point.layer),
        tokens=settings["tokens"],
        centre=(np.array(statistics["mean"]), statistics["scale"]),
        log=snakemake.output.log,
        checkpoint=snakemake.params.checkpoint,
        **{name: options.pop(name) for name in ("epochs", "batch", "precision", "deterministic")},
        recipe=training.Recipe(input=shape["input"], decoder=shape["decoder"], **options),
    )
    sae.save(Path(snakemake.output.weights).parent, provenance())
