"""Makes the SAE of another library a point of the grid."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

from sae import exchange, images, jobs
from sae.errors import InputError
from sae.store import Activations

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake) as provenance:
    train = images.used(images.read_manifest(snakemake.input.images), images.TRAIN)
    x = Activations.open(snakemake.input.shards, settings["tokens"], train["id"])
    path = snakemake.config["imported"].format(**point)
    model = exchange.imported(path, int(point.layer), int(point.k), settings["tokens"], x)
    if settings["baselines"] and model.config.latents != round(settings["expansion"] * x.width):
        wanted = model.config.latents / x.width
        raise InputError(
            f"imported SAE {path}: it has {model.config.latents} latents, the baselines would have "
            f"{round(settings['expansion'] * x.width)}; set sae.expansion to {wanted:.10g}"
        )
    model.save(Path(snakemake.output.sae).parent, provenance() | {"imported": snakemake.params.content})
