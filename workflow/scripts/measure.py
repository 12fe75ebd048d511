"""Measures dictionaries of one grid point: codes, metrics, and how the ViT responds when latents are taken out."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

import numpy as np
import pandas as pd

import sae
from sae import device, files, images, jobs, measure, vit
from sae.evidence.attribution import Gradients
from sae.evidence.layer_facts import LayerFacts
from sae.layer import Layer

settings, inputs = snakemake.params.settings, snakemake.input
with jobs.job(snakemake) as provenance:
    where = device.resolve(snakemake.config["device"])
    setup = measure.Setup(
        Layer(
            inputs.shards,
            images.read_manifest(inputs.manifest),
            files.read_json(inputs.reference),
            files.read_json(inputs.statistics),
        ),
        LayerFacts.load(inputs.layer),
        vit.load(**snakemake.config["model"], device=where),
        np.load(inputs.logits),
        Gradients(**files.read_arrays(inputs.gradients, mapped=True)[0]),
        **{name: settings[name] for name in ("batch", "ks", "latents", "images")},
        pairs=files.read_arrays(inputs.pairs)[0]["tokens"] if inputs.get("pairs") else None,
    )
    outputs = [snakemake.output[name] for name in ("codes", "responses", "attributions", "metrics", "other_ks")]
    paths = map(jobs.listed, [inputs.sae, *outputs])
    for weights, codes, responses, attributions, metrics, other_ks in zip(*paths, strict=True):
        measured = measure.measure(sae.load(Path(weights).parent, where), setup, settings["keep_all"])
        measured.codes.save(Path(codes).parent, provenance())
        files.write_arrays(responses, vars(measured.responses))
        files.write_arrays(attributions, vars(measured.attributions))
        # Layer, k and method stand in the path: hive readers add them, and refuse files that hold them too.
        row = pd.DataFrame([{"seed": int(snakemake.wildcards.seed)} | measured.metrics])
        files.write_table(metrics, row, provenance())
        files.write_table(other_ks, measured.other_ks, provenance())
