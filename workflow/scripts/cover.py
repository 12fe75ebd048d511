"""Says how much of each patch the main object of each built-in image covers, as the model sees the image."""

from pathlib import Path

import numpy as np
import pandas as pd

from sae import concepts, files, jobs, vit
from sae.geometry import Geometry

settings = snakemake.params.settings
with jobs.job(snakemake), files.whole(snakemake.output[0]) as part:
    facts = files.read_json(snakemake.input.model)
    paths = pd.read_parquet(snakemake.input.manifest).set_index("id").loc[facts["ids"], "path"]
    model = vit.load(settings["name"], "random", settings["image_size"])
    masks = Path(snakemake.input[0]) / "masks.npy"
    np.save(part, concepts.cover(masks, paths, vit.pixel_transform(model), Geometry(**facts["geometry"]).grid))
