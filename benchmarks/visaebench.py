"""A second opinion about the dictionaries of a finished run: the metrics of visaebench that work offline, beside ours.

    uv run python benchmarks/visaebench.py results/photos20 --layers 9 --ks 16

visaebench (an independent package, July 2026) runs in an environment of its own, on the patches of all images with a
label. It splits the images itself. Its probe is also run with one of its choices changed at a time, to see which of
them decide. Results go to benchmarks/results/<out>.json and .md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from peers import Tool, environment, install, machine

from sae import files, images
from sae.store import Activations

_HERE = Path(__file__).resolve().parent
_TOOL = Tool("visaebench", "visaebench.py", ("visaebench==0.1.0", str(_HERE.parent)))
_OURS = ("concept_recovery", "class_selectivity", "probe_1", "probe_5")
_SHOWN = {
    "fvu": "FVU",
    "our fvu": "our FVU",
    "preservation": "preservation",
    "coherence": "coherence",
    "coherence, patches shuffled": "…, latents shuffled",
    "probing": "probing",
}


def judge(results: Path, point: str, folder: Path, asked: argparse.Namespace, python: Path) -> dict[str, Any]:
    """Returns the metrics of one dictionary, ours among them."""
    settings = {"out": str(folder), "dictionary": str(results / "sae" / point), "seed": 42, "threads": asked.threads}
    settings["patches"] = files.read_json(results / "reference/reference.json")["geometry"]["patches"]
    (folder / "settings.json").write_text(json.dumps(settings))
    command = [str(python), str(_HERE / "workers/second_opinion.py"), str(folder / "settings.json")]
    with (folder / "log.txt").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, env=environment(asked.threads), check=True)
    found = json.loads((folder / "result.json").read_text())
    summary = pd.read_parquet(results / "evidence" / point / "summary.parquet").set_index("measure")["value"]
    return found | {f"ours: {name}": float(summary[name]) for name in _OURS if name in summary}


def store(results: Path, layer: int, folder: Path) -> None:
    """Writes the patches of all images with a label, and the labels as numbers."""
    rows = images.used(images.read_manifest(results / "manifest.parquet"))
    rows = rows[rows["label"].notna()]
    counts = rows["label"].map(rows["label"].value_counts())
    rows = rows[counts >= 5]  # visaebench splits every class
    shards = sorted((results / f"activations/layer={layer}").glob("shard=*.npy"))
    x = Activations.open(shards, "patches", rows["id"].to_numpy())
    np.save(folder / "x.npy", x.read(np.arange(len(x))).astype(np.float32))
    np.save(folder / "labels.npy", rows.set_index("id").loc[x.ids, "label"].astype("category").cat.codes.to_numpy())


def markdown(rows: list[dict[str, Any]], asked: argparse.Namespace) -> str:
    """Returns two tables: the metrics, and the probes by their choices and k."""
    ours = [name for name in rows[0] if name.startswith("ours: ")]
    head = ["layer", "k", "method", *_SHOWN.values(), *ours]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        values = " | ".join(f"{row.get(name, float('nan')):.3f}" for name in (*_SHOWN, *ours))
        lines.append(f"| {row['layer']} | {row['k']} | {row['method']} | {values} |")
    probes = [name for name in rows[0] if name.startswith("probe, ")]
    kinds = list(dict.fromkeys(name.rsplit(", ", 1)[0] for name in probes))
    sizes = list(dict.fromkeys(name.rsplit(", ", 1)[1] for name in probes))
    lines += ["", "| layer | k | method | probe | " + " | ".join(f"{size} latents" for size in sizes) + " |"]
    lines.append("|---" * (4 + len(sizes)) + "|")
    for row in rows:
        for kind in kinds:
            values = " | ".join(f"{row.get(f'{kind}, {size}', float('nan')):.3f}" for size in sizes)
            lines.append(f"| {row['layer']} | {row['k']} | {row['method']} | {kind.split(', ', 1)[1]} | {values} |")
    here = machine("cpu")
    command = shlex.join(["benchmarks/visaebench.py", *sys.argv[1:]])
    return "\n".join([*lines, "", f"{here['cpu']}, {asked.threads} thread(s). `{command}`"]) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the folder of a finished run whose images have labels")
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument("--ks", type=int, nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=machine("cpu")["cores"])
    parser.add_argument("--out", default="visaebench", help="name of the results")
    return parser.parse_args()


def main() -> None:
    asked, rows = arguments(), []
    python = install(_TOOL)
    if isinstance(python, str):
        sys.exit(f"visaebench is needed: {python}")
    out, folder = _HERE / "results" / asked.out, _HERE / ".data/runs" / asked.out
    out.parent.mkdir(exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for layer in asked.layers:
        store(asked.results, layer, folder)
        for k in asked.ks:
            for path in sorted((asked.results / f"sae/layer={layer}/k={k}").glob("method=*/seed=0/sae.safetensors")):
                point = str(path.parent.relative_to(asked.results / "sae"))
                where = {"layer": layer, "k": k, "method": path.parts[-3].removeprefix("method=")}
                rows.append(where | judge(asked.results, point, folder, asked, python))
                out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
                out.with_suffix(".md").write_text(markdown(rows, asked))
                print(where, {name: round(rows[-1][name], 3) for name in _SHOWN}, flush=True)
    for large in folder.glob("*.npy"):
        large.unlink()


if __name__ == "__main__":
    main()
