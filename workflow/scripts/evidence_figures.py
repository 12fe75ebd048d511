"""Draws the evidence about one dictionary: stability, sparse probes, interventions, monosemanticity."""

from sae.warm import hand_over

hand_over()

import pandas as pd

from sae import jobs
from sae.evidence.layer_facts import LayerFacts
from sae.figures import interventions, matching, probing, style

settings, point = snakemake.params.settings, snakemake.wildcards
with jobs.job(snakemake):
    tables = {
        name: pd.read_parquet(snakemake.input[name])
        for name in ("latents", "monosemanticity", "interventions", "effects")
    }
    name = f"Layer {point.layer}, k {point.k}, {point.method}, seed {point.seed}"
    facts = LayerFacts.load(snakemake.input.layer)
    nulls = {"random directions": facts.null_directions} | (
        {"random tokens": facts.null_tokens} if len(facts.null_tokens) else {}
    )
    dictionaries = dict.fromkeys([point.method, *settings["baselines"]])
    probes = dict(zip(dictionaries, map(pd.read_parquet, snakemake.input.probes), strict=True))
    scores = tables["monosemanticity"]
    drawn = {
        "stability": matching.stability(tables["latents"], nulls, f"{name}: stability across seeds"),
        "probes": probing.probes(probes, f"{name}: probes on a few latents"),
        "interventions": interventions.interventions(
            tables["interventions"], tables["effects"], f"{name}: interventions on single latents"
        ),
        "monosemanticity": probing.monosemanticity(
            scores["monosemanticity"].to_numpy(),
            scores["monosemanticity_shuffled"].to_numpy(),
            f"{name}: monosemanticity",
        ),
    }
    for figure, path in ((drawn[name], path) for name, path in snakemake.output.items()):
        style.save(figure, path)
