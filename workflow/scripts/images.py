"""Lists the images: contents, splits, and what is wrong with which."""

from sae.warm import hand_over

hand_over(wait=30)

from sae import feasibility, files, images, jobs, vit

asked = snakemake.config
with jobs.job(snakemake) as provenance:
    # First, since it takes a moment, and what follows may take hours.
    feasibility.check(asked, vit.geometry(vit.load(**asked["model"])))
    limits = snakemake.params.settings["limits"] or {}
    table = images.list_images(*jobs.source(snakemake), asked["held_out"], snakemake.threads, **limits)
    files.write_table(snakemake.output[0], table, provenance())
