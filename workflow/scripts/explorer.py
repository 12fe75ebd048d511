"""Writes the explorer's page, the numbers of the grid and the pictures."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

import pandas as pd

from sae import files, images, jobs
from sae.explorer import class_pages, page, parts, point

settings = snakemake.params.settings
with jobs.job(snakemake):
    manifest = images.read_manifest(snakemake.input.manifest)
    reference = files.read_json(snakemake.input.reference)
    metrics, summaries = (files.read_points(snakemake.input[name]) for name in ("metrics", "summaries"))
    opened = point.openable(manifest, settings["images"])["id"].tolist()
    pictured = {*opened}
    for path in snakemake.input.images:
        pictured.update(pd.read_parquet(path, columns=["image_id"])["image_id"].unique().tolist())
    facts = {name: settings[name] for name in ("name", "model", "tokens")} | {"geometry": reference["geometry"]}
    facts["classes"] = class_pages.menu(manifest)
    numbers = page.grid(metrics, summaries, settings["methods"], settings["baselines"], facts)
    data = Path(snakemake.output.grid).parent
    parts.write(data, "grid", numbers)
    parts.write(data, "images", page.image_list(manifest, opened, sorted(pictured)))
    page.pictures(Path(snakemake.output.pictures), manifest, snakemake.input.pixels, sorted(pictured))
    page.app(Path(snakemake.output.app))
    page.page(Path(snakemake.output.page))
