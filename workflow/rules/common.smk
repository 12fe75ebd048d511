# Settings and functions that all rules share; no rules here.
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from urllib.parse import quote

import yaml
from snakemake.utils import update_config

from sae import sources, warm
from sae.config import complete, page_name
from sae.errors import InputError, shortage

if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # a log file wants few lines

# A file with images of its own starts from the schema's defaults: these settings suit the built-in images. They are not
# a `configfile:`, which Snakemake skips in a module.
if config.get("images", "concepts") == "concepts":
    default = yaml.safe_load(
        Path(workflow.source_path("../../config.yaml")).read_text()
    )
    update_config(default, config)
    config = default
SCHEMA = workflow.source_path("../schemas/config.schema.yaml")
try:
    config = complete(config, SCHEMA)
except InputError as error:
    sys.exit(f"error: {error}")

# Results go through a storage provider, such as a bucket. A receipt would stay on the machine that wrote it, and rules
# that make folders run here: Snakemake's plugin for S3 overlooks a folder that another machine stored during the run.
ELSEWHERE = workflow.storage_settings.default_storage_provider is not None
config["receipts"] = not ELSEWHERE
R = f"results/{config['name']}"
# The same as params have it: Snakemake puts a module's `prefix` before inputs and outputs alone.
RESULTS = workflow.modifier.path_modifier.replace_prefix(R)
P = "layer={layer}/k={k}/method={method}/seed={seed}"
ENV = "../envs/sae.yaml"
GRID = config["grid"]
METHODS, BASELINES = GRID["methods"], GRID["baselines"]
TRAINED = [method for method in METHODS if method != "imported"]
# Scripts take paths and the device from the config: as params, they would rerun jobs whose results stay the same.
MODEL, EMBEDDING = (
    {name: section[name] for name in ("name", "image_size")}
    for section in (config["model"], config["evidence"]["embedding"])
)
BUILT_IN = config["images"] == "concepts"
SHARDS = [f"{i:04d}" for i in range(config["shards"])]
THREADS = config["threads"]
GPU = int(config["device"].startswith("cuda"))
SEEDS = GRID["seeds"]
# A method with one seed gets a second seed, so that stability can be measured.
SECOND_SEEDS = [] if len(SEEDS) > 1 else [SEEDS[0] + 1]
# The baselines that need training, those that do not, and those that differ between seeds.
LEARNT = ("frozen", "soft_frozen", "frozen_encoder")
BUILT = [method for method in BASELINES if method not in LEARNT]
SEEDLESS = ("neurons", "pca")
SEEDED = [method for method in BASELINES if method not in SEEDLESS]

# Files by the name that scripts give them.
CONCEPTS = {"concepts": f"{R}/concepts"} if BUILT_IN else {}
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
# With a limit on the images, the choice among them.
IMAGE_LIMITS = None
if config["limits"]["images"] is not None:
    IMAGE_LIMITS = {
        "most": config["limits"]["images"],
        "seed": config["limits"]["seed"],
    }
# With a limit on the tokens, those that dictionaries are trained on lie in files of their own.
DRAWN, LIMITS, TRAINING = {}, None, STORE
if config["limits"]["tokens_per_image"] is not None:
    DRAWN = {
        name: f"{R}/activations/layer={{layer}}/train={{shard}}.{ending}"
        for name, ending in (("drawn", "npy"), ("drawn_facts", "json"))
    }
    TRAINING = {
        name: [path.replace("shard=", "train=") for path in paths]
        for name, paths in STORE.items()
    }
    LIMITS = {
        "tokens": config["tokens"],
        "tokens_per_image": config["limits"]["tokens_per_image"],
        "seed": config["limits"]["seed"],
        "sample": config["evaluation"]["images"],
    }
LAYER = {
    "layer": f"{R}/activations/layer={{layer}}/layer.safetensors",
    "dense_probes": f"{R}/activations/layer={{layer}}/dense_probes.parquet",
}
PAIRS = (
    {"pairs": f"{R}/activations/layer={{layer}}/pairs.safetensors"} if BUILT_IN else {}
)
GRADIENTS = {"gradients": f"{R}/activations/layer={{layer}}/gradients.safetensors"}
SAE = {
    "sae": f"{R}/sae/{P}/sae.safetensors",
    "facts": f"{R}/sae/{P}/sae.json",
}
MEASURED = {
    "codes": f"{R}/codes/{P}/codes.safetensors",
    "responses": f"{R}/codes/{P}/responses.safetensors",
    "attributions": f"{R}/codes/{P}/attributions.safetensors",
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
        "attributions",
        "localisation",
        "summary",
    )
}
ACROSS_KS = f"{R}/matches/ks/layer={{layer}}/method={{method}}/seed={{seed}}.parquet"
ACROSS_LAYERS = f"{R}/matches/layers/k={{k}}/method={{method}}/seed={{seed}}.parquet"
EDGES = f"{R}/matches/edges/k={{k}}/method={{method}}/seed={{seed}}.parquet"
JUDGING = {
    **REFERENCE,
    **COVERAGE,
    **LAYER,
    "manifest": f"{R}/manifest.parquet",
}
MEASURING = {
    "model": MODEL,
    "batch": config["extraction"]["batch"],
    "ks": config["evaluation"]["ks"],
    "latents": config["evidence"]["latents"],
    "images": config["evidence"]["images"],
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


def of_methods(files, methods):
    """Fills the method of a dict of patterns, which gives a list of files for each name."""
    return {
        name: expand(path, method=methods, allow_missing=True)
        for name, path in files.items()
    }


def of_other_seeds(pattern, wildcards, methods=None):
    """Returns the files of the other seeds, with which the stability of this seed is measured, method by method."""
    seed = int(wildcards.seed)
    seeds = {*SEEDS, *SECOND_SEEDS}
    if wildcards.get("method") == "imported":
        seeds = {*SEEDS}  # nobody trains another seed of it
    others = sorted(seeds - {seed})
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


def rule_params(script, **values):
    """Returns a rule's params: one dict, sorted by key, since Snakemake compares params as a set of bare values.

    With the hash of the code, a change of the script's imports reruns the rule and shows in the reason.
    """
    code = sources.code(workflow.source_path(f"../scripts/{script}"))
    return dict(sorted({"code": code, **values}.items()))


def many_jobs_here(workflow):
    """Returns whether a warm process pays: it takes as long to start as a few jobs, and helps this Python's jobs alone."""
    try:
        elsewhere = "conda" in map(str, workflow.deployment_settings.deployment_method)
        here = workflow.is_main_process and workflow.local_exec and not elsewhere
        return here and len(list(workflow.dag.needrun_jobs())) >= 12
    except (
        Exception
    ):  # another Snakemake may name these differently, and jobs run well without
        return False


def check_device(workflow):
    """Ends a run on this machine that asks for a device which it lacks: jobs would say so after hours of decoding."""
    if (
        workflow.is_main_process
        and workflow.local_exec
        and config["device"] not in ("auto", "cpu")
    ):
        from sae import device

        try:
            device.resolve(config["device"])
        except InputError as error:
            sys.exit(f"error: {error}")


def pad(number):
    """Writes a number so that text sorts as numbers do in the report's menus."""
    return f"{int(number):04d}"


def shown(path, category, figure, caption=None):
    """Returns an output of the report, labelled with the figure and the wildcards of its path."""

    def labels(wildcards):
        given = {name: value for name, value in wildcards.items() if name != "ending"}
        return {
            "figure": figure,
            **{n: pad(v) if v.isdigit() else v for n, v in given.items()},
        }

    return report(
        path,
        caption=f"../report/{caption or Path(path).stem}.rst",
        category=category,
        subcategory=(
            (lambda wildcards: f"layer {pad(wildcards.layer)}") if P in path else None
        ),
        labels=labels,
    )


# Params that are functions are computed when Snakemake plans, and not whenever this file is read. Jobs on other machines
# do not plan.
@cache
def _now(function, *paths, **limits):
    from sae import listing

    try:
        return getattr(listing, function)(
            *paths, memory=".snakemake/contents", **limits
        )
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {shortage(error, config['images']) or error}")


def images_now(part):
    """Returns a param: a hash of the user's `images` or `labels` as they are now, see `sae.listing`."""

    def param(wildcards):
        if BUILT_IN or not workflow.is_main_process:
            return None
        limits = IMAGE_LIMITS or {}
        return _now("listing", config["images"], config["labels"], **limits)[part]

    return param


def weights_now(model):
    """Returns a param: a hash of the weights of a section of the config as they are now, see `sae.listing`."""

    def param(wildcards):
        path = model["checkpoint"]
        return path if path in (None, "random") else _now("weights", path)

    return param


def imported_now(wildcards):
    """Returns a param: a hash of an imported SAE as it is now, see `sae.listing`."""
    return _now("sae", config["imported"].format(**wildcards))


# Another experiment, to compare with.
THERE = Path(config["with"] or "").expanduser()
if RESULTS != R:
    # As a module with a prefix: Snakemake would put the prefix before a relative path.
    THERE = THERE.resolve()
# Of the dictionaries, only SAEs are matched; random ones are the control.
MATCHED = [*METHODS, *{"random"} & {*BASELINES}]


def there(pattern, points=("",)):
    """Returns the other experiment's files of a pattern, one for each point."""
    path = pattern.removeprefix(f"{R}/")
    return [str(THERE / path.replace(P, point)) for point in points]


def of_other(wildcards):
    """Returns the other experiment's files by the names that the rule gives them; it must be finished."""
    told = f"error: with {THERE}:"
    if not THERE.is_dir():
        sys.exit(
            f"{told} no such folder; give another experiment's folder of results, such as results/pets"
        )
    if {"{", "}"} & {*str(THERE)}:
        sys.exit(
            f"{told} Snakemake reads no path with braces; rename the folder, or link to it"
        )
    if THERE.resolve() == Path(RESULTS).resolve():
        sys.exit(f"{told} this is the experiment itself; give another one's folder")
    schema = yaml.safe_load(Path(SCHEMA).read_text())
    methods = schema["properties"]["grid"]["properties"]["methods"]["items"]["enum"]
    measured = {
        str(path.relative_to(THERE / "metrics").with_suffix("")): path.parent.name
        for path in THERE.glob("metrics/layer=*/k=*/method=*/seed=*.parquet")
    }
    saes = sorted(
        p for p, m in measured.items() if m.removeprefix("method=") in methods
    )
    random = sorted(p for p, m in measured.items() if m == "method=random")
    files = {
        "manifest": there(f"{R}/manifest.parquet"),
        "reference": there(REFERENCE["reference"]),
        "codes": there(MEASURED["codes"], [*saes, *random]),
        "summaries": there(EVIDENCE["summary"], [*saes, *random]),
        "latents": there(RANKING["latents"], saes),
        "images": there(RANKING["images"], saes),
    }
    for path in (path for paths in files.values() for path in paths):
        if not Path(path).is_file():
            sys.exit(
                f"{told} no finished experiment of this version: {path} is missing; finish its run first"
            )
    if not saes:
        sys.exit(f"{told} no finished experiment: it has no SAE; finish its run first")
    return {f"other_{name}": paths for name, paths in files.items()}


def other_explorer(wildcards):
    """Returns the address of the other experiment's explorer, from a page two folders below results/; or None."""
    page = THERE / "explorer/index.html"
    return quote(os.path.relpath(page, f"{RESULTS}/report")) if page.is_file() else None


# Results that compare grid points, if there are several.
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
