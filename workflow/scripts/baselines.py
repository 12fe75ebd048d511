"""Makes the baselines of one grid point from their directions."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

import numpy as np

from sae import baselines, files, images, jobs
from sae.store import Activations

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake) as provenance:
    train = images.used(images.read_manifest(snakemake.input.images), images.TRAIN)
    x = Activations.open(snakemake.input.shards, settings["tokens"], train["id"], verify=False)
    statistics = files.read_json(snakemake.input.statistics)
    centre = np.array(statistics["mean"]), statistics["scale"]
    rows = files.read_arrays(snakemake.input.directions)[0]
    for method, path in zip(settings["methods"], jobs.listed(snakemake.output.sae), strict=True):
        fit = method not in baselines.ORTHONORMAL
        sample = baselines.sample(x, method, centre, int(point.seed)) if fit else None
        where = {"layer": int(point.layer), "tokens": settings["tokens"]}
        model = baselines.build(rows[method], sample, int(point.k), method, centre, **where)
        model.save(Path(path).parent, provenance())
