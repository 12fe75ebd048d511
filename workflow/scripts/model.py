"""Asks the untouched model about held-out images: its outputs, and its accuracy where it knows the classes."""

import numpy as np
import pandas as pd

from sae import device, files, jobs, vit
from sae.evidence import splice

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    model = vit.load(**settings["model"], device=device.resolve(settings["device"]))
    manifest = pd.read_parquet(snakemake.input.manifest)
    chosen = splice.sample(manifest, settings["images"])
    logits = splice.predict(model, snakemake.input.pixels, manifest, chosen, settings["batch"])
    with files.whole(snakemake.output.logits) as part:
        np.save(part, logits)
    facts = splice.describe(model, manifest, chosen, logits)
    files.write_json(snakemake.output.facts, facts | {"model": settings["model"], "provenance": provenance()})
