"""Evaluates one SAE on held-out images: reconstruction, sparsity, and put back into the ViT."""

from pathlib import Path

import numpy as np
import pandas as pd

import sae
from sae import device, files, jobs, points, vit

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake) as provenance:
    where = device.resolve(settings["device"])
    layer = points.Layer.read(snakemake.input)
    encoder = sae.load(Path(snakemake.input.sae).parent, where)
    model, logits = vit.load(**settings["model"], device=where), np.load(snakemake.input.logits)
    row, other_ks = points.evaluate(encoder, layer, model, logits, settings["ks"], settings["batch"])
    # Layer, k and method stand in the path: hive readers add them, and refuse files that hold them too.
    files.write_table(snakemake.output.metrics, pd.DataFrame([{"seed": int(point.seed)} | row]), provenance())
    files.write_table(snakemake.output.other_ks, other_ks, provenance())
