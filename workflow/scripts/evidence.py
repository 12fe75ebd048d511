"""Gathers the evidence for and against the latents of one SAE."""

from pathlib import Path

import sae
from sae import device, files, jobs, points, vit

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake) as provenance:
    where = device.resolve(settings["device"])
    encoder, other = (sae.load(Path(path).parent, where) for path in (snakemake.input.sae, *snakemake.input.other))
    layer = points.Layer.read(snakemake.input)
    found = points.gather(
        encoder,
        other,
        layer,
        vit.load(**settings["model"], device=where),
        points.read_ranking(snakemake.input, layer, encoder.config.latents),
        points.embedding(snakemake.input.embedding, settings["embedding"]["name"], int(point.layer), layer),
        points.cover(snakemake.input.cover),
        settings["latents"],
        settings["images"],
    )
    for name, table in found.tables().items():
        files.write_table(snakemake.output[name], table, provenance())
