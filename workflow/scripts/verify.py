"""Compares all files of the experiment with their receipts."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

from sae import jobs, verify

params = snakemake.params
with jobs.job(snakemake):
    verify.report(Path(params.results), params.options, params.now, jobs.versions(), snakemake.threads)
