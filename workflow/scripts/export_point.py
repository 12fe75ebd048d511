"""Writes one SAE for other libraries and for a model hub."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

import numpy as np
import pandas as pd

from sae import files, jobs
from sae.exchange import hub
from sae.store import Activations

settings, inputs = snakemake.params.settings, snakemake.input
with jobs.job(snakemake):
    x = Activations.open(inputs.shards, settings["tokens"], verify=False)
    few = x.read(np.arange(min(len(x), 32)))
    hub.publish(
        Path(inputs.sae).parent,
        Path(snakemake.output[0]),
        files.read_points(inputs.summaries, ["measure", "value", "low", "high"]),
        pd.read_parquet(inputs.metrics),
        {"Images of its latents": Path(inputs.latents), "Classes of its latents": Path(inputs.classes)},
        files.read_json(inputs.reference),
        few.reshape(-1, x.width),
    )
