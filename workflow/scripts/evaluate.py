"""Evaluates one SAE on held-out images: reconstruction, sparsity, and put back into the ViT."""

from pathlib import Path

import numpy as np
import pandas as pd

import sae
from sae import device, faithfulness, files, images, jobs, metrics, vit
from sae.activations import Activations

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake) as provenance:
    where = device.resolve(settings["device"])
    model = vit.load(**settings["model"], device=where)
    encoder = sae.load(Path(snakemake.input.sae).parent, where)
    manifest = pd.read_parquet(snakemake.input.manifest)
    held_out = Activations.open(
        snakemake.input.shards, encoder.settings.tokens, images.used(manifest, images.HELD_OUT)["id"]
    )
    chosen = files.read_json(snakemake.input.model)["ids"]
    # Layer, k and method stand in the path: hive readers add them, and refuse files that hold them too.
    row = {"seed": int(point.seed)}
    row |= metrics.reconstruction(encoder, held_out)
    row |= faithfulness.evaluate(
        model,
        encoder,
        Activations.open(snakemake.input.shards, "all", chosen, verify=False),
        np.load(snakemake.input.logits),
        faithfulness.targets(manifest.set_index("id").loc[chosen], vit.class_names(model)),
        np.array(files.read_json(snakemake.input.statistics)["mean"]),
        settings["batch"],
    )
    files.write_table(snakemake.output.metrics, pd.DataFrame([row]), provenance())
    files.write_table(snakemake.output.other_ks, metrics.at_other_ks(encoder, held_out, settings["ks"]), provenance())
