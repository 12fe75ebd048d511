"""Measures dictionaries of one grid point: codes, metrics, and how the ViT responds when latents are taken out."""

from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

import sae
from sae import device, files, jobs, layer, measure, vit
from sae.evidence import interventions, splice

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    where = device.resolve(settings["device"])
    found = layer.Layer(
        snakemake.input.shards,
        pd.read_parquet(snakemake.input.manifest),
        files.read_json(snakemake.input.reference),
        files.read_json(snakemake.input.statistics),
    )
    facts = layer.LayerFacts.load(snakemake.input.layer)
    model, logits = vit.load(**settings["model"], device=where), np.load(snakemake.input.logits)
    ranked = found.ranked["id"].to_numpy()
    wanted = measure.Wanted(
        held_out=found.held_out,
        ranked=ranked,
        sample=found.sample,
        train=found.train,
        stored=ranked if settings["keep"] == "ranked" else found.sample,
        median_norm=found.statistics["norms"]["patch"]["median"],
    )
    x = found.tokens(found.statistics["tokens"], np.union1d(ranked, found.held_out))
    whole = found.tokens("all", found.sample)
    truth = splice.targets(found.manifest.set_index("id").loc[found.sample], found.reference["class_names"])
    outputs = {name: jobs.listed(snakemake.output[name]) for name in snakemake.output.keys()}
    for place, path in enumerate(jobs.listed(snakemake.input.sae)):
        dictionary = sae.load(Path(path).parent, where)
        spliced = measure.Spliced(model, whole, found.selected, dictionary.config.layer, settings["batch"])
        codes, row, other_ks = measure.measure(dictionary, x, wanted, facts.variance, settings["ks"], spliced)
        row |= splice.metrics(logits, spliced.outputs(), facts, truth, found.reference["class_names"])
        responses = interventions.run(
            model, dictionary, whole, codes.of(found.sample), settings["latents"], settings["images"], facts.clean
        )
        codes.save(Path(outputs["codes"][place]).parent, provenance())
        with files.whole(outputs["responses"][place]) as part:
            save_file(responses.to_arrays(), part)
        # Layer, k and method stand in the path: hive readers add them, and refuse files that hold them too.
        metrics = pd.DataFrame([{"seed": int(snakemake.wildcards.seed)} | row])
        files.write_table(outputs["metrics"][place], metrics, provenance())
        files.write_table(outputs["other_ks"][place], other_ks, provenance())
