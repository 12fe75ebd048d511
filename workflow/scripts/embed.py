"""Embeds every image, to say which are alike: by a model's features, and by its pixels alone."""

import numpy as np
import pandas as pd

from sae import device, files, images, jobs, vit
from sae.evidence import monosemanticity

settings = snakemake.params.settings
with jobs.job(snakemake):
    model = vit.load(**settings["model"], device=device.resolve(settings["device"]))
    manifest = pd.read_parquet(snakemake.input.manifest)
    ids = images.used(manifest)["id"].tolist()
    features = monosemanticity.embed(model, snakemake.input.pixels, manifest, ids, settings["batch"])
    shards = (np.load(path, mmap_mode="r") for path in snakemake.input.pixels)  # in the order of the ids
    pixels = np.concatenate([monosemanticity.embedding_pixels(shard) for shard in shards])
    for name, embedding in (("features", features), ("pixels", pixels)):
        with files.whole(snakemake.output[name]) as part:
            np.save(part, embedding)
