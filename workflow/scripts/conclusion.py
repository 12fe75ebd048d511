"""Concludes: SAEs against every baseline, over the grid."""

from sae.warm import hand_over

hand_over()

from sae import files, images, jobs
from sae.evidence import choice, conclusion, summary
from sae.figures import conclusion as figures
from sae.figures import style

settings = snakemake.params.settings
with jobs.job(snakemake):
    summaries = files.read_points(snakemake.input.summaries)
    compared = summary.compare(summaries, settings["methods"], settings["baselines"])
    latents = files.read_points(snakemake.input.latents, choice.READ)
    ranked = len(images.ranked(images.read_manifest(snakemake.input.manifest)))
    points = choice.grid_points(summaries, latents, conclusion.against_best(compared), settings["methods"], ranked)
    with files.whole(snakemake.output.page) as part:
        part.write_text(conclusion.page(summaries, compared, points, settings["name"]))
    with files.whole(snakemake.output.points) as part:
        points.to_csv(part, index=False)
    with files.whole(snakemake.output.table) as part:
        compared.to_csv(part, index=False)
    title = f"SAEs against baselines: {settings['name']}"
    style.save(figures.conclusion(summaries, settings["methods"], title), snakemake.output.figure)
