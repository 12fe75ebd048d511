"""Writes a page about an image outside the experiment."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

from sae import device, jobs, new_image, vit

with jobs.job(snakemake):
    model = vit.load(**snakemake.config["model"], device=device.resolve(snakemake.config["device"]))
    results = Path(snakemake.input.manifest).parent
    new_image.look(snakemake.params.image, results, model, snakemake.output[0])
