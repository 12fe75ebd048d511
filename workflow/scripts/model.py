"""Asks the untouched model about held-out images: its outputs, and its accuracy where it knows the classes."""

import numpy as np
import pandas as pd

from sae import device, faithfulness, files, jobs, vit

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    model = vit.load(**settings["model"], device=device.resolve(settings["device"]))
    manifest = pd.read_parquet(snakemake.input.manifest)
    chosen = faithfulness.sample(manifest, settings["images"])
    logits = faithfulness.predict(model, snakemake.input.pixels, manifest, chosen, settings["batch"])
    with files.whole(snakemake.output.logits) as part:
        np.save(part, logits)
    facts = faithfulness.describe(model, manifest, chosen, logits)
    files.write_json(snakemake.output.facts, facts | {"model": settings["model"], "provenance": provenance()})
