"""Concludes: SAEs against every baseline, over the grid."""

from sae.warm import hand_over

hand_over()

from sae import files, jobs
from sae.evidence import conclusion, summary
from sae.figures import conclusion as figures
from sae.figures import style

settings = snakemake.params.settings
with jobs.job(snakemake):
    summaries = files.read_points(snakemake.input)
    compared = summary.compare(summaries, settings["methods"], settings["baselines"])
    with files.whole(snakemake.output.page) as part:
        part.write_text(conclusion.page(summaries, compared, settings["name"]))
    with files.whole(snakemake.output.table) as part:
        compared.to_csv(part, index=False)
    title = f"SAEs against baselines: {settings['name']}"
    style.save(figures.conclusion(summaries, settings["methods"], title), snakemake.output.figure)
