"""Trains the shipped concept backbone again, into a folder of its own."""

import sys
from pathlib import Path

from sae import concept_vit, device, files, jobs

settings = dict(snakemake.params.settings)
del settings["code"]
with jobs.job(snakemake), files.whole(snakemake.output[0]) as folder:
    facts = concept_vit.train(Path(folder), **settings | {"device": device.resolve(settings["device"])})
    print(facts["accuracy"], file=sys.stderr)
