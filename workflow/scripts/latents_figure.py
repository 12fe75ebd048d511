"""Draws the top-image sheet of one dictionary."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

import pandas as pd

import sae
from sae import files, images, jobs
from sae.figures import latents as sheets
from sae.figures import style
from sae.geometry import Geometry
from sae.images.pixels import read_pixels

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake):
    manifest = images.read_manifest(snakemake.input.manifest)
    latents, panels = (pd.read_parquet(snakemake.input[name]) for name in ("latents", "images"))
    groups = sheets.choose_latents(latents, settings["latents"])
    shown = sheets.shown(panels, [latent for part in groups.values() for latent in part], settings["images"])
    patches = Geometry(**files.read_json(snakemake.input.reference)["geometry"]).patches
    codes = sae.codes(Path(snakemake.input.codes).parent)
    pairs = shown.loc[shown["panel"] != "silent", ["latent", "image_id"]].itertuples(index=False)
    figure = sheets.sheet(
        groups,
        latents,
        shown,
        manifest,
        read_pixels(manifest, snakemake.input.pixels, shown["image_id"].unique().tolist()),
        codes.patch_maps(pairs, patches),
        f"Layer {point.layer}, k {point.k}, {point.method}, seed {point.seed}: images and patches of single latents",
    )
    style.save(figure, snakemake.output[0])
