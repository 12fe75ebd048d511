"""Draws the evidence about one SAE: stability, sparse probes, causes, monosemanticity."""

import numpy as np
import pandas as pd

from sae import images, jobs
from sae.activations import Activations
from sae.evidence import matching
from sae.figures import interventions, probing
from sae.figures import matching as matching_figures
from sae.figures import latents as figures

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake):
    latents, scores, causes, effects = (
        pd.read_parquet(snakemake.input[name]) for name in ("latents", "scores", "causes", "effects")
    )
    name = f"Layer {point.layer}, k {point.k}, {point.method}, seed {point.seed}"
    train = images.used(pd.read_parquet(snakemake.input.manifest), images.TRAIN)["id"]
    x = Activations.open(snakemake.input.shards, settings["tokens"], train, verify=False)
    tokens = x.read(np.arange(min(len(x), -(-20 * len(latents) // x.tokens)))).reshape(-1, x.width)
    nulls = matching.null_stability(len(latents), tokens.astype(np.float32), np.random.default_rng(0))
    dictionaries = dict.fromkeys([point.method, *settings["baselines"]])
    probes = dict(zip(dictionaries, map(pd.read_parquet, snakemake.input.probes), strict=True))
    drawn = {
        "stability": matching_figures.stability_figure(latents, nulls, f"{name}: are latents found again with another seed?"),
        "probes": probing.probing_figure(probes, f"{name}: how well a few latents tell a class"),
        "causes": interventions.causality_figure(causes, effects, f"{name}: what latents cause"),
        "monosemanticity": probing.monosemanticity_figure(
            scores["monosemanticity"].to_numpy(),
            scores["monosemanticity_shuffled"].to_numpy(),
            f"{name}: do a latent's images look alike?",
        ),
    }
    for figure, path in ((drawn[name], path) for name, path in snakemake.output.items()):
        figures.save(figure, path)
