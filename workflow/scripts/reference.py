"""Runs the untouched ViT over the ranked images: outputs, features, and accuracy where it knows the classes."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

import numpy as np

from sae import concepts, device, extraction, files, images, jobs, vit
from sae.evidence import splice

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    where = device.resolve(snakemake.config["device"])
    model = vit.load(**snakemake.config["model"], device=where)
    manifest = images.read_manifest(snakemake.input.manifest)
    ids = splice.sample(manifest, settings["images"])
    arrays = extraction.reference(model, snakemake.input.pixels, manifest, ids, settings["batch"])
    if settings["embedding"]["name"]:
        other = vit.load(**snakemake.config["evidence"]["embedding"], device=where)
        arrays |= {"features": extraction.embed(other, snakemake.input.pixels, manifest, ids, settings["batch"])}
    if snakemake.output.get("coverage"):
        paths = manifest.set_index("id").loc[ids, "path"]
        masks, see = Path(snakemake.input.concepts) / "masks.npy", vit.pixel_transform(model)
        arrays |= {"coverage": concepts.coverage(masks, paths, see, vit.geometry(model).patches)}
    for name, array in arrays.items():
        with files.whole(snakemake.output[name]) as part:
            np.save(part, array)
    facts = extraction.describe(model, manifest, ids, arrays["logits"])
    facts |= {"model": settings["model"], "weights": snakemake.params.weights, "provenance": provenance()}
    files.write_json(snakemake.output.reference, facts)
