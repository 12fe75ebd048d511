"""Compares this experiment with another one: a page, a table, a figure, and the explorer's data about it."""

from sae.warm import hand_over

hand_over()

from pathlib import Path

import sae
from sae import files, images, jobs
from sae.evidence import compare, compare_page
from sae.explorer import elsewhere
from sae.figures import compare as figures
from sae.figures import style

PICTURES = 4  # of each latent that the page lists


def experiment(name, prefix=""):
    parts = ("manifest", "reference", "codes", "summaries", "latents", "images")
    given = {part: jobs.listed(snakemake.input[prefix + part]) for part in parts}
    codes = {}
    for folder in (Path(path).parent for path in given["codes"]):
        layer, k, method, seed = (part.partition("=")[2] for part in folder.parts[-4:])
        codes[int(layer), compare.Kind(int(k), method, int(seed))] = sae.codes(folder)
    shown = files.read_points(given["images"], ["latent", "panel", "rank", "image_id"])
    return compare.Experiment(
        name,
        files.read_json(given["reference"][0]),
        images.read_manifest(given["manifest"][0]),
        codes,
        files.read_points(given["summaries"], ["measure", "value", "draws"]),
        files.read_points(given["latents"], compare.READ),
        shown[(shown["panel"] == "top") & (shown["rank"] <= PICTURES)],
    )


settings, out, explorer = snakemake.params.settings, snakemake.output, snakemake.params.explorer
with jobs.job(snakemake) as provenance:
    own = experiment(settings["name"])
    name = settings["other"] if settings["other"] != own.name else f"{settings['other']} (other)"
    with compare.readable(name):
        other = experiment(name, "other_")
    found = compare.compare(own, other)
    files.write_table(out.matches, found.latents, provenance())
    with files.whole(out.table) as part:
        found.table.to_csv(part, index=False)
    names, why = (own.name, other.name), compare_page.unmatched(found)
    for path in out.figures:
        style.save(figures.compare(found.latents, found.table, names, why), path)
    with files.whole(out.page) as part:
        part.write_text(compare_page.page(found, out.figures[0], explorer))
    elsewhere.write(Path(out.explorer), found, explorer)
