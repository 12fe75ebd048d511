"""Gathers the evidence about the latents of dictionaries of one grid point."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

import numpy as np
import pandas as pd

import sae
from sae import files, images, jobs
from sae.evidence import judge
from sae.evidence.attribution import Attributions
from sae.evidence.interventions import Responses
from sae.evidence.layer_facts import LayerFacts
from sae.geometry import Geometry

settings, inputs = snakemake.params.settings, snakemake.input


def dictionary(path, codes, responses=None, attributions=None):
    """Reads one dictionary: its decoder, its codes, its effects on the ViT."""
    seed = int(Path(path).parent.name.removeprefix("seed="))
    measured = responses and Responses(**files.read_arrays(responses)[0])
    estimated = attributions and Attributions(**files.read_arrays(attributions)[0])
    decoder = files.read_arrays(path)[0]["W_dec"]
    return judge.Dictionary(seed, decoder, sae.codes(Path(codes).parent), measured, estimated)


with jobs.job(snakemake) as provenance:
    reference = files.read_json(inputs.reference)
    geometry = Geometry(**reference["geometry"])
    manifest = images.read_manifest(inputs.manifest)
    last = int(snakemake.wildcards.layer) == geometry.blocks - 1
    # The last layer's activations are what the features are made of: there images are compared by their pixels.
    embedding = np.load(inputs.thumbnails if last and not settings["embedding"] else inputs.features)
    rows = images.ranked(manifest, reference["ids"])
    coverage = np.load(inputs.coverage) if inputs.get("coverage") else None
    sample = np.array(reference["ids"])
    shown = judge.Images(rows, sample, embedding, coverage, reference["class_names"])
    facts, dense = LayerFacts.load(inputs.layer), pd.read_parquet(inputs.dense_probes)
    own = [jobs.listed(inputs[name]) for name in ("sae", "codes", "responses", "attributions")]
    others = list(zip(inputs.other_saes, inputs.other_codes, strict=True))
    seeds = len(others) // len(own[0])  # of each dictionary
    for place, paths in enumerate(zip(*own, strict=True)):
        tokens = files.read_json(Path(paths[0]).parent / "sae.json")["tokens"]
        same = [dictionary(*pair) for pair in others[place * seeds : (place + 1) * seeds]]
        tables = judge.judge(
            dictionary(*paths),
            {other.seed: other for other in same},
            shown,
            facts,
            geometry,
            tokens,
            judge.Limits(**settings["ranking"]),
        )
        tables["probes"] = pd.concat([tables["probes"], dense], ignore_index=True)
        for name, table in tables.items():
            files.write_table(jobs.listed(snakemake.output[name])[place], table, provenance())
