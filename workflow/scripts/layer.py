"""Computes all that depends on a layer but on no dictionary."""

from sae.warm import hand_over

hand_over()

import pandas as pd

from sae import device, files, jobs, layer, vit
from sae.evidence import classes, probing
from sae.images import HELD_OUT

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    found = layer.Layer(
        snakemake.input.shards,
        pd.read_parquet(snakemake.input.manifest),
        files.read_json(snakemake.input.reference),
        files.read_json(snakemake.input.statistics),
    )
    model = vit.load(**snakemake.config["model"], device=device.resolve(snakemake.config["device"]))
    latents = round(settings["expansion"] * found.geometry.width)
    facts = layer.facts(found, model, int(snakemake.wildcards.layer), latents, settings["batch"])
    facts.save(snakemake.output.layer)
    place = layer.probed(found.ranked)
    labels = {name: values[place] for name, values in classes.attributes(found.ranked).items()}
    train = (found.ranked["split"] != HELD_OUT).to_numpy()[place]
    probes = probing.probe_dense(layer.dense_features(found), labels, train)
    files.write_table(snakemake.output.dense_probes, probes.table, provenance())
