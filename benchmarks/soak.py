"""Runs the whole workflow on random small configurations, and tallies how the runs end.

    uv run python benchmarks/soak.py --count 200

Images, labels, models, layers, ks, methods, tokens, shards and seeds are drawn at random; so are models with broken
weights and with huge activations. A run may succeed, with all files as docs/data.md describes them, or be refused with
one line that begins with `error:`. Everything else is a fault: its folder is kept, and the exit status is 1.
Configuration N of a seed is always the same: `--first N --count 1` repeats it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from contract import problems
from PIL import Image

from sae.autoencoder import BASELINES, METHODS

_ROOT = Path(__file__).resolve().parent.parent
_LONGEST = 1800  # seconds of one run
# Name and input sizes; small ViTs of different kinds: without a class token, with registers, with rotary positions.
_MODELS = {
    "vit_tiny_concepts": [None],
    "test_vit": [32, 64, None],
    "test_vit2": [32, 64],
    "test_vit3": [48],
    "vit_tiny_patch16_224": [32, 64],
    "deit_tiny_distilled_patch16_224": [48],
    "eva02_tiny_patch14_224": [28, 56],
}
_WEIGHTS = {"as they are": 20, "huge": 3, "one outlier": 3, "infinite": 1, "NaN": 1, "zero": 1, "constant": 1}
_LAYERS = 6  # all of these models have as many at least


def draw(rng: np.random.Generator, folder: Path) -> dict[str, Any]:
    """Returns a random configuration, whose images and weights are written to `folder`."""

    def some(values: list, most: int) -> list:
        return rng.permutation(values)[: rng.integers(1, most + 1)].tolist()

    def one(values: list) -> Any:
        return values[rng.integers(len(values))]

    model: dict[str, Any] = {"name": one(list(_MODELS))}
    model["image_size"] = one(_MODELS[model["name"]])
    kinds = list(_WEIGHTS)
    weights = rng.choice(kinds, p=np.array([_WEIGHTS[kind] for kind in kinds]) / sum(_WEIGHTS.values()))
    if weights != "as they are":
        model["checkpoint"] = str(folder / "edited.pth")
        _edit(model["name"], weights, folder / "edited.pth")
    elif model["name"] != "vit_tiny_concepts":
        model["checkpoint"] = "random"
    config = {
        "name": "soak",
        "model": model,
        "held_out": float(rng.choice([0.1, 0.2, 0.5])),
        "shards": int(rng.integers(1, 4)),
        "tokens": one(["patches", "patches", "class", "all"]),
        "extraction": {"batch": one([1, 8, 64]), "dtype": one(["float32", "float32", "bfloat16", "float16"])},
        "grid": {
            "layers": some(list(range(_LAYERS)), 1),
            "ks": some([1, 2, 3, 4, 8, 16], 1),
            "methods": some([*METHODS], 1),
            "seeds": some([0, 1, 2, 7], 1),
            "baselines": rng.permutation(BASELINES).tolist(),
        },
        "sae": {
            "expansion": one([0.1, 0.25, 0.5, 1, 2]),
            "input": one(["standardised", "standardised", "layernorm"]),
            "decoder": one(["unit_norm", "start"]),
        },
        "training": {
            "epochs": int(rng.integers(1, 4)),
            "batch": one([4, 8, 8, 16, 64]),
            "whole_images": bool(rng.random() < 0.2),
            "precision": one(["auto", "auto", "auto", "fp32", "bf16", "int8"]),
            "auxk": one([0, 1 / 32]),
            "clip": one([1.0, None]),
            "lr_per_epoch": one([1.0, 0.7]),
        },
        "evaluation": {"images": one([1, 5, 2000]), "ks": some([1, 3, 10, 1000], 3)},
        "ranking": {"images": one([1, 4, 16]), "classes": one([1, 10]), "support": one([1, 2, 5])},
        "evidence": {"latents": one([1, 4, 24]), "images": one([1, 4])},
        "report": {"latents": one([1, 4]), "images": one([1, 4])},
        "explorer": {"images": one([1, 10, 1000])},
    }
    name, values = one(
        [("layers", [1, 3]), ("ks", [2, 4]), ("methods", ["topk", "relu"]), ("seeds", [3, 0]), ("ks", [2])]
    )
    config["grid"][name] = values  # one side of the grid has two entries, at most
    config["grid"]["baselines"] = config["grid"]["baselines"][: rng.integers(0, 3)]
    if rng.random() < 0.2:
        config["evidence"]["embedding"] = {"name": "test_vit2", "checkpoint": "random", "image_size": 32}
    if rng.random() < 0.2:
        return config | {
            "images": "concepts",
            "concepts": {"count": int(rng.integers(10, 60)), "seed": int(rng.integers(9))},
        }
    return config | {"images": str(folder / "images"), "labels": _images(rng, folder)}


def _edit(name: str, kind: str, path: Path) -> None:
    """Writes random weights whose third block, of index 2, has outputs of this kind."""
    import torch

    from sae import vit

    model = vit.load(name, None if name == "vit_tiny_concepts" else "random")
    mlp = model.blocks[2].mlp.fc2
    if kind in ("zero", "constant"):  # all that an image changes is lost
        for parameter in model.patch_embed.proj.parameters():
            parameter.zero_()
    if kind == "zero":
        for parameter in model.parameters():
            parameter.zero_()
    elif kind == "huge":
        mlp.weight.mul_(1e7)
    elif kind == "one outlier":
        mlp.weight[5].mul_(1e4)
    elif kind != "constant":
        mlp.bias[5] = float({"infinite": "inf", "NaN": "nan"}[kind])
    torch.save(model.state_dict(), path)


def _images(rng: np.random.Generator, folder: Path) -> str | None:
    """Writes random images; returns the path of a CSV file with their labels, if there is one."""
    classes = [f"class {i}" for i in range(rng.integers(0, 5))]
    depth, splits = rng.random() < 0.2, rng.random() < 0.2
    rows = []
    for number in range(rng.integers(8, 60)):
        side = rng.integers(4, 100, 2)
        kind = rng.choice(
            ["noise", "flat", "shaded", "grey", "clear", "broken", "copy"], p=[0.4, 0.1, 0.3, *[0.05] * 4]
        )
        pixels = rng.integers(0, 256, (*side, 3)).astype(np.uint8)
        if kind == "flat":
            pixels[:] = pixels[0, 0]
        elif kind == "shaded":
            pixels = (pixels[0, 0] * np.linspace(0, 1, side[0])[:, None, None] * np.ones((*side, 1))).astype(np.uint8)
        picture = Image.fromarray(pixels).convert({"grey": "L", "clear": "RGBA"}.get(kind, "RGB"))
        parts = ["nested"] * depth + [str(rng.choice(["train", "val"]))] * splits + classes[number % 5 : number % 5 + 1]
        path = Path(*parts, f"{number}.{'png' if kind == 'clear' else rng.choice(['png', 'jpg'])}")
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / "images" / path)
        if kind == "copy" and rows:
            shutil.copy(folder / "images" / rows[-1]["path"], folder / "images" / path)
        if kind == "broken":
            (folder / "images" / path).write_bytes(b"no image")
        rows.append({"path": str(path), "label": rng.choice(["a", "b", ""]), "colour": rng.choice(["red", "blue"])})
    if rng.random() < 0.7:
        return None
    table = pd.DataFrame(rows).sample(frac=rng.choice([0.5, 1]), random_state=0)
    if rng.random() < 0.3:
        table["split"] = rng.choice(["train", "held_out"], len(table), p=[0.8, 0.2])
    table.to_csv(folder / "labels.csv", index=False)
    return str(folder / "labels.csv")


def outcome(config: dict[str, Any], folder: Path, cores: int) -> tuple[str, str]:
    """Runs the workflow in `folder`; returns `succeeded`, `refused` or `fault`, and the line that explains it."""
    (folder / "experiment.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "-s", str(_ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--cores", str(cores), "--configfile", str(folder / "experiment.yaml")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, check=False, timeout=_LONGEST)
    except subprocess.TimeoutExpired:
        return "fault", f"it took longer than {_LONGEST} seconds"
    output = done.stdout + done.stderr
    (folder / "output.txt").write_text(output)
    if done.returncode == 0:
        wrong = problems(folder / "results/soak")
        return ("fault", "; ".join(wrong)) if wrong else ("succeeded", "")
    lines = re.findall(r"^error: .*", output, re.M)
    if "Traceback" in output or not lines:
        last = re.findall(r"^[\w.]+(?:Error|Exception|Interrupt)\b.*", output, re.M)
        return "fault", last[0] if last else "no line that begins with error:"
    return "refused", lines[0]


def pattern(line: str) -> str:
    """Returns a line without its numbers and paths, under which lines of one kind are counted."""
    return re.sub(r"(?<![\w.])-?\d[\d.e+-]*\b", "N", re.sub(r"\S*/\S*", "PATH", line))


def markdown(found: list[tuple[int, str, str]]) -> str:
    """Returns a table of outcomes: how many configurations ended so, and the number and line of the first of them."""
    groups: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for number, kind, line in found:
        groups[kind, pattern(line)].append((number, line))
    rows = ["| outcome | configurations | first | its line |", "|---|---:|---:|---|"]
    for kind in ("succeeded", "refused", "fault"):
        chosen = sorted((group for key, group in groups.items() if key[0] == kind), key=len, reverse=True)
        rows += [f"| {kind} | {len(group)} | {group[0][0]} | {group[0][1]} |" for group in chosen]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="number of configurations")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=1)
    asked = parser.parse_args()
    found = []
    for number in range(asked.first, asked.first + asked.count):
        folder, began = Path(tempfile.mkdtemp(prefix=f"soak-{number}-")), time.perf_counter()
        config = draw(np.random.default_rng([asked.seed, number]), folder)
        kind, line = outcome(config, folder, asked.cores)
        found.append((number, kind, line.replace(f"{folder}/", "")))
        where = folder if kind == "fault" else ""
        print(number, f"{time.perf_counter() - began:.0f} s", *found[-1][1:], where, file=sys.stderr, flush=True)
        if kind != "fault":
            shutil.rmtree(folder)
    print(markdown(found))
    sys.exit(any(kind == "fault" for _number, kind, _line in found))


if __name__ == "__main__":
    main()
