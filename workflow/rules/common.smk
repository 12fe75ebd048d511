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
# What says which images are alike: another model where one is named.
EMBEDDING = (
    config["evidence"]["embedding"]
    if config["evidence"]["embedding"]["name"]
    else MODEL
)
BUILT_IN = config["images"] == "concepts"
IMAGES = f"{R}/concepts/images" if BUILT_IN else config["images"]
LABELS = f"{R}/concepts/images/labels.csv" if BUILT_IN else config["labels"]
SHARDS = [f"{i:04d}" for i in range(config["shards"])]
THREADS = config["threads"]
GPU = int(config["device"].startswith("cuda"))
COVER = [f"{R}/concepts-cover.npy"] if BUILT_IN else []
# Files of one grid point, by the name that its scripts give them.
SAE = {
    "sae": f"{R}/sae/{P}/sae.safetensors",
    "facts": f"{R}/sae/{P}/sae.json",
}
EVALUATION = {
    "metrics": f"{R}/metrics/{P}.parquet",
    "other_ks": f"{R}/other_ks/{P}.parquet",
}
RANKING = {
    name: f"{R}/ranking/{P}/{name}.parquet"
    for name in ("latents", "images", "classes", "recovery", "activations")
}
EVIDENCE = {
    name: f"{R}/evidence/{P}/{name}.parquet"
    for name in ("scores", "probes", "causes", "effects", "localisation", "summary")
}


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


def other_seeds(seed):
    """Returns the seeds whose dictionaries show whether a latent of this one is found again; one more if it is alone."""
    return sorted({*GRID["seeds"]} - {int(seed)}) or [int(seed) + 1]


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
        f"{R}/report/layer={{layer}}/fates-{{method}}-{{seed}}.svg",
        layer=GRID["layers"],
        method=METHODS,
        seed=GRID["seeds"],
    )
if len(GRID["layers"]) > 1:
    COMPARISONS += expand(
        f"{R}/report/chains/k={{k}}-{{method}}-{{seed}}.svg",
        k=GRID["ks"],
        method=METHODS,
        seed=GRID["seeds"],
    )
if BASELINES:
    COMPARISONS.append(f"{R}/report/conclusion.html")
