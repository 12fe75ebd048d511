"""Trains the shipped concept backbone again, into a folder of its own, as sae/weights/backbone.json records it."""

from sae.warm import hand_over

hand_over()

import sys
from pathlib import Path

from sae import concept_vit, device, files, jobs

with jobs.job(snakemake), files.whole(snakemake.output[0]) as folder:
    where = device.resolve(snakemake.config["device"])
    facts = concept_vit.train(Path(folder), images=170_000, batch=16, lr=0.001, seed=0, held_out=4000, device=where)
    print(facts["accuracy"], file=sys.stderr)
