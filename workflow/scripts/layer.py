"""Computes all that depends on a layer but on no dictionary."""

from sae.warm import hand_over

hand_over()

from sae import device, files, images, jobs, vit
from sae.evidence import attribution, classes, layer_facts, one_factor, probing
from sae.layer import Layer

settings = snakemake.params.settings
with jobs.job(snakemake) as provenance:
    found = Layer(
        snakemake.input.shards,
        images.read_manifest(snakemake.input.manifest),
        files.read_json(snakemake.input.reference),
        files.read_json(snakemake.input.statistics),
    )
    model = vit.load(**snakemake.config["model"], device=device.resolve(snakemake.config["device"]))
    number, latents = int(snakemake.wildcards.layer), round(settings["expansion"] * found.geometry.width)
    facts = layer_facts.compute(found, model, number, latents, settings["batch"])
    facts.save(snakemake.output.layer)
    whole = found.tokens("all", found.sample)
    gradients = attribution.gradients(model, whole, number, found.selected, *found.centre, settings["batch"])
    files.write_arrays(snakemake.output.gradients, vars(gradients))
    if drawn := settings["concepts"]:
        see = vit.pixel_transform(model)
        pairs = one_factor.tokens(model, number, found.selected, see, drawn["seed"], batch=settings["batch"])
        files.write_arrays(snakemake.output.pairs, {"tokens": pairs})
    place = layer_facts.probed(found.ranked)
    labels = {name: values[place] for name, values in classes.attributes(found.ranked).items()}
    train = (found.ranked["split"] != images.HELD_OUT).to_numpy()[place]
    probes = probing.probe_dense(layer_facts.dense_features(found), labels, train)
    files.write_table(snakemake.output.dense_probes, probes.table, provenance())
