"""Writes what the explorer shows of one SAE's latents, and what fires on each image."""

from pathlib import Path

import pandas as pd

import sae
from sae import device, jobs, points
from sae.explorer import point

TABLES = ("latents", "images", "classes", "scores", "causes", "effects")
settings, here = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake):
    tables = {name: pd.read_parquet(snakemake.input[name]) for name in TABLES}
    for name in ("fates", "chains"):
        paths = [snakemake.input[name]] if snakemake.input[name] else []
        tables[name] = pd.concat([pd.DataFrame(), *map(pd.read_parquet, paths)])
    point.write(
        Path(snakemake.output[0]).parents[3],
        {"layer": int(here.layer), "k": int(here.k), "method": here.method, "seed": int(here.seed)},
        sae.load(Path(snakemake.input.sae).parent, device.resolve(settings["device"])),
        points.Layer.read(snakemake.input),
        point.Tables(**tables),
        settings["seeds"],
        settings["images"],
    )
