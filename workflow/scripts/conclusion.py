"""Concludes: SAEs against every baseline, over the grid."""

from sae import files, jobs
from sae.evidence import summary
from sae.figures import conclusion
from sae.figures import latents as figures

settings = snakemake.params.settings
with jobs.job(snakemake):
    table = jobs.grid(snakemake.input)
    compared = summary.compare(table, settings["methods"], settings["baselines"])
    with files.whole(snakemake.output.page) as part:
        part.write_text(conclusion.page(table, compared, settings["name"]))
    with files.whole(snakemake.output.table) as part:
        compared.to_csv(part, index=False)
    title = f"What an SAE buys here: {settings['name']}"
    figures.save(conclusion.figure(table, settings["methods"], title), snakemake.output.figure)
