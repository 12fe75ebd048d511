"""Makes the baselines of one grid point, and measures each as an SAE is measured."""

from pathlib import Path

import numpy as np
import pandas as pd

from sae import baselines, device, files, images, jobs, points, training, vit

settings, point = snakemake.params.settings, snakemake.wildcards
ranking, evidence, seed = settings["ranking"], settings["evidence"], int(point.seed)


def make(layer, x, method, seed):
    """Returns the baseline; frozen is trained as the SAEs are."""
    latents, centre = round(settings["expansion"] * x.width), layer.centre
    common = {"k": int(point.k), "latents": latents, "method": method, "seed": seed, "centre": centre}
    common |= {"layer": int(point.layer), "tokens": settings["tokens"]}
    if method != "frozen":
        return baselines.build(x, **common)
    options = dict(settings["training"])
    loop = {name: options.pop(name) for name in ("epochs", "batch", "precision", "deterministic")}
    return training.train(x, device=settings["device"], recipe=training.Recipe(**options), **common, **loop)


with jobs.job(snakemake) as provenance:
    where = device.resolve(settings["device"])
    layer = points.Layer.read(snakemake.input)
    model, logits = vit.load(**settings["model"], device=where), np.load(snakemake.input.logits)
    train = layer.tokens(settings["tokens"], images.used(layer.manifest, images.TRAIN)["id"])
    twin = min({*settings["seeds"]} - {seed}, default=seed + 1)
    alike = points.embedding(snakemake.input.embedding, evidence["embedding"]["name"], int(point.layer), layer)
    for place, method in enumerate(settings["methods"]):
        made = {s: make(layer, train, method, s).to(where) for s in (seed, twin)}
        encoder, other = made.values()
        encoder.save(Path(snakemake.output.sae[place]).parent, provenance())
        row, other_ks = points.evaluate(encoder, layer, model, logits, settings["ks"], settings["batch"])
        tables = {"metrics": pd.DataFrame([{"seed": seed} | row]), "other_ks": other_ks}
        found = points.ranked(
            encoder, {twin: other}, seed, layer, ranking["images"], ranking["classes"], ranking["support"]
        )
        tables |= points.tables(found, layer)
        gathered = points.gather(
            encoder,
            other,
            layer,
            model,
            found,
            alike,
            points.cover(snakemake.input.cover),
            evidence["latents"],
            evidence["images"],
            dense=False,
        )
        for name, table in (tables | gathered.tables()).items():
            files.write_table(snakemake.output[name][place], table, provenance())
