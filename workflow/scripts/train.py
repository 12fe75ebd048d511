"""Trains the dictionary of one grid point: an SAE, or a baseline that is trained."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

from sae import files, images, jobs, training
from sae.store import Activations

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake) as provenance:
    train = images.used(images.read_manifest(snakemake.input.images), images.TRAIN)
    x = Activations.open(snakemake.input.shards, settings["tokens"], train["id"])
    shape = dict(settings["sae"])
    latents = round(shape.pop("expansion") * x.width)
    config = training.TrainConfig(k=int(point.k), latents=latents, method=point.method, **shape, **settings["training"])
    source = training.Source(int(point.layer), settings["tokens"], files.read_json(snakemake.input.statistics))
    model = training.train(
        x,
        config,
        int(point.seed),
        snakemake.config["device"],
        source,
        snakemake.output.log,
        snakemake.params.checkpoint,
    )
    model.save(Path(snakemake.output.log).parent, provenance())
