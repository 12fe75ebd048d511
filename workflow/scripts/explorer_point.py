"""Writes the explorer's data of one SAE: its latents, and the latents that fire on each image."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

import numpy as np
import pandas as pd

import sae
from sae import files, images, jobs
from sae.evidence.attribution import Attributions
from sae.explorer import point
from sae.geometry import Geometry

TABLES = ("latents", "images", "classes", "best_latents", "monosemanticity", "interventions", "effects")
TABLES += ("attributions", "localisation")
settings, here = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake):
    tables = {name: pd.read_parquet(snakemake.input[name]) for name in TABLES}
    for name in ("across_ks", "across_layers", "edges"):
        paths = jobs.listed(snakemake.input[name])
        tables[name] = pd.concat([pd.DataFrame(), *map(pd.read_parquet, paths)])
    manifest, reference = images.read_manifest(snakemake.input.manifest), files.read_json(snakemake.input.reference)
    about = point.Point(
        where={"layer": int(here.layer), "k": int(here.k), "method": here.method, "seed": int(here.seed)},
        tokens=settings["tokens"],
        geometry=Geometry(**reference["geometry"]),
        codes=sae.codes(Path(snakemake.input.codes).parent),
        decoder=files.read_arrays(snakemake.input.sae)[0]["W_dec"],
        tables=point.Tables(**tables),
        sample=np.array(reference["ids"]),
        estimates=Attributions(**files.read_arrays(snakemake.input.estimates)[0]),
        names=reference["class_names"],
        seeds=settings["seeds"],
    )
    opened = point.openable(manifest, settings["images"])["id"].to_numpy()
    point.write(Path(snakemake.output[0]), about, manifest, opened)
