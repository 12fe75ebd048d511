# What all rules share; no rules here.
import ast
import hashlib
import os
import sys
from functools import cache
from pathlib import Path

from sae.config import complete
from sae.errors import InputError

HERE = Path(workflow.basedir)
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # a log file wants few lines

try:
    config = complete(config, HERE / "workflow/schemas/config.schema.yaml")
except InputError as error:
    sys.exit(f"error: {error}")

R = f"results/{config['name']}"
P = "layer={layer}/k={k}/method={method}/seed={seed}"
ENV = str(HERE / "workflow/envs/sae.yaml")
GRID = config["grid"]
METHODS, BASELINES = GRID["methods"], GRID["baselines"]
MODEL = config["model"]
BUILT_IN = config["images"] == "concepts"
IMAGES = f"{R}/concepts/images" if BUILT_IN else config["images"]
LABELS = f"{R}/concepts/images/labels.csv" if BUILT_IN else config["labels"]
SHARDS = [f"{i:04d}" for i in range(config["shards"])]
THREADS = config["threads"]
GPU = int(config["device"].startswith("cuda"))
SEEDS = GRID["seeds"]
# A method with one seed gets a second one, to see which latents are found again.
SECOND_SEEDS = [] if len(SEEDS) > 1 else [SEEDS[0] + 1]
BUILT = [
    method for method in BASELINES if method != "frozen"
]  # the others need no training

# Files by the name that scripts give them.
PIXELS = expand(f"{R}/pixels/shard={{shard}}.npy", shard=SHARDS)
REFERENCE = {
    "reference": f"{R}/reference/reference.json",
    "logits": f"{R}/reference/logits.npy",
    "features": f"{R}/reference/features.npy",
    "thumbnails": f"{R}/reference/thumbnails.npy",
}
COVERAGE = {"coverage": f"{R}/reference/coverage.npy"} if BUILT_IN else {}
STORE = {
    name: expand(
        f"{R}/activations/layer={{layer}}/shard={{shard}}.{ending}",
        shard=SHARDS,
        allow_missing=True,
    )
    for name, ending in (("shards", "npy"), ("shard_facts", "json"))
}
LAYER = {
    "layer": f"{R}/activations/layer={{layer}}/layer.safetensors",
    "dense_probes": f"{R}/activations/layer={{layer}}/dense_probes.parquet",
}
SAE = {
    "sae": f"{R}/sae/{P}/sae.safetensors",
    "facts": f"{R}/sae/{P}/sae.json",
}
MEASURED = {
    "codes": f"{R}/codes/{P}/codes.safetensors",
    "responses": f"{R}/codes/{P}/responses.safetensors",
    "metrics": f"{R}/metrics/{P}.parquet",
    "other_ks": f"{R}/other_ks/{P}.parquet",
}
RANKING = {
    name: f"{R}/ranking/{P}/{name}.parquet"
    for name in ("latents", "images", "classes", "best_latents")
}
EVIDENCE = {
    name: f"{R}/evidence/{P}/{name}.parquet"
    for name in (
        "monosemanticity",
        "probes",
        "interventions",
        "effects",
        "localisation",
        "summary",
    )
}
ACROSS_KS = f"{R}/matches/ks/layer={{layer}}/method={{method}}/seed={{seed}}.parquet"
ACROSS_LAYERS = f"{R}/matches/layers/k={{k}}/method={{method}}/seed={{seed}}.parquet"
JUDGING = {
    **REFERENCE,
    **COVERAGE,
    **LAYER,
    "manifest": f"{R}/manifest.parquet",
}
MEASURING = {
    "model": MODEL,
    "device": config["device"],
    "batch": config["extraction"]["batch"],
    "ks": config["evaluation"]["ks"],
    "latents": config["evidence"]["latents"],
    "images": config["evidence"]["images"],
}
# Whether the features come from another ViT than the one under study.
EMBEDDED = config["evidence"]["embedding"]["name"]


wildcard_constraints:
    layer=r"\d+",
    k=r"\d+",
    method="|".join([*METHODS, *BASELINES]),
    seed=r"\d+",
    shard=r"\d{4}",
    ending="svg|png",


def points(pattern, methods=METHODS):
    """Fills a pattern of P's wildcards with every point of the grid, of these methods."""
    return expand(
        pattern,
        layer=GRID["layers"],
        k=GRID["ks"],
        method=methods,
        seed=GRID["seeds"],
    )


def of_methods(files, methods):
    """Fills the method of a dict of patterns, which gives a list of files for each name."""
    return {
        name: expand(path, method=methods, allow_missing=True)
        for name, path in files.items()
    }


def of_other_seeds(pattern, wildcards, methods=None):
    """Returns the files of the seeds that show whether latents of this one are found again, method by method."""
    seed = int(wildcards.seed)
    others = sorted({*SEEDS, *SECOND_SEEDS} - {seed})
    return [
        pattern.format(
            layer=wildcards.layer,
            k=wildcards.k,
            method=method,
            seed=seed if method in SEEDLESS else other,
        )
        for method in (methods or [wildcards.method])
        for other in others
    ]


@cache
def code(module):
    """Returns a hash of a module of `sae` and of all that it imports from `sae`.

    As a param it makes a change of the code rerun what depends on it, on every executor, and shows in the reason.
    Comments and touched files change nothing: the syntax tree is hashed.
    """
    seen, todo = {}, [module]
    while todo:
        name = todo.pop()
        path = HERE / "sae" / f"{name.replace('.', '/')}.py"
        if name in seen or not path.is_file():
            continue
        tree = ast.parse(path.read_text())
        seen[name] = ast.dump(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in (
                "sae",
                "sae.evidence",
                "sae.explorer",
            ):
                package = node.module.removeprefix("sae").lstrip(".")
                todo += [f"{package}.{a.name}".lstrip(".") for a in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "sae."
            ):
                todo.append(node.module.removeprefix("sae."))
    return hashlib.sha256(repr(sorted(seen.items())).encode()).hexdigest()[:12]


def content(folder):
    """Returns a hash of the files in a folder of the code, for a param: see `code`."""
    files = sorted(path for path in (HERE / folder).rglob("*") if path.is_file())
    parts = [(path.relative_to(HERE).as_posix(), path.read_bytes()) for path in files]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def settings(module, **values):
    """Returns a rule's params: one dict, sorted by key, since Snakemake compares params as a set of bare values."""
    return dict(sorted({"code": code(module), **values}.items()))


def pad(number):
    """Writes a number so that text sorts as numbers do in the report's menus."""
    return f"{int(number):04d}"


def figure_labels(figure, wildcards):
    return {
        "figure": figure,
        "layer": pad(wildcards.layer),
        "k": pad(wildcards.k),
        "method": wildcards.method,
        "seed": pad(wildcards.seed),
    }


def folder_listing():
    """Returns a hash of the user's image folder as it is now, so that a changed folder is listed again."""
    if BUILT_IN:
        return None
    from sae.images import listing

    try:
        return listing(IMAGES, LABELS)
    except InputError as error:
        sys.exit(f"error: {error}")


# What compares the grid's points, where there is more than one to compare.
COMPARISONS = [
    f"{R}/report/layers.svg",
    f"{R}/report/layers.csv",
    f"{R}/report/other_ks.svg",
]
if len(GRID["ks"]) > 1:
    COMPARISONS += expand(
        f"{R}/report/layer={{layer}}/across-ks-{{method}}-{{seed}}.svg",
        layer=GRID["layers"],
        method=METHODS,
        seed=GRID["seeds"],
    )
if len(GRID["layers"]) > 1:
    COMPARISONS += expand(
        f"{R}/report/across-layers/k={{k}}-{{method}}-{{seed}}.svg",
        k=GRID["ks"],
        method=METHODS,
        seed=GRID["seeds"],
    )
if BASELINES:
    COMPARISONS.append(f"{R}/report/conclusion.html")
