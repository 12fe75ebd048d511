"""Trains SAEs on SynthSAEBench-16k (arXiv 2602.14687), with this project and with SAELens, and scores what they found.

    uv run python benchmarks/synthsaebench.py --samples 2000000
    uv run python benchmarks/synthsaebench.py --only matryoshka saelens-matryoshka --samples 20000000 --out long

A variant is one of SAELens's SAEs with the settings of the benchmark's authors (`saelens-…`), or a method of this
project, also with changed settings: `matryoshka:decoder=start,decay=0.5`. All are trained on the same tokens, drawn
once by SAELens and kept under benchmarks/.data; a run of more samples than `--rows` sees them several times, in a new
order each time. SAELens computes the metrics, on tokens that nobody trained on. Results go to
benchmarks/results/<out>.json and .md. The first call builds the benchmark's model: half an hour on two cores.

The authors chose SAELens's constant rate for 200 million samples, while this project's rate follows from the number of
steps. So a short run says how fast each gets somewhere, as it comes, and not where it would end.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from data import folder_of
from peers import TOOLS, environment, install, machine

from sae.autoencoder import METHODS

_HERE = Path(__file__).resolve().parent
_WORKERS = _HERE / "workers"
_LATENTS = 4096
_THEIRS = ("saelens-batchtopk", "saelens-matryoshka", "saelens-jumprelu", "saelens-standard")
# Of the benchmark's page: L0 25, after 200 million samples.
_PUBLISHED = {
    "BatchTopK": (0.732, 0.757, 0.984, 0.792),
    "Matryoshka": (0.879, 0.793, 0.999, 0.779),
    "JumpReLU": (0.732, 0.753, 0.989, 0.795),
    "Standard L1": (0.556, 0.604, 0.898, 0.765),
}
_METRICS = ("f1", "mcc", "uniqueness", "explained_variance", "precision", "recall")


class Bench:
    """The drawn tokens and the runs of one call of this script."""

    def __init__(self, asked: argparse.Namespace):
        self._asked = asked
        theirs = install(TOOLS["saelens"])
        if isinstance(theirs, str):
            sys.exit(f"SAELens is needed for the data and the metrics: {theirs}")
        self._theirs = theirs
        facts = {"kind": "synthsaebench", "rows": asked.rows, "held_out": asked.held_out, "seed": 0}
        self._data = folder_of(_HERE / ".data", facts)
        self._common = {"threads": asked.threads, "data": str(self._data)}
        if not (self._data / "train.npy").exists():
            self._worker(theirs, "synthsaebench.py", self._data, facts | self._common, "draw")

    def run(self, variant: str) -> dict[str, Any]:
        """Returns the metrics of a variant, and its seconds."""
        asked = self._asked
        tool, option = ("saelens", variant.removeprefix("saelens-")) if variant in _THEIRS else ("ours", variant)
        folder = _HERE / ".data/runs" / asked.out / variant.replace(":", "-")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        settings = {
            "out": str(folder),
            "train": str(self._data / "train.npy"),
            "held_out": str(self._data / "held_out.npy"),
            "latents": _LATENTS,
            "k": asked.k,
            "batch": asked.batch,
            "tokens": asked.samples,
            "lr": 3e-4 if tool == "saelens" else None,
            "seed": asked.seed,
            "threads": asked.threads,
            "device": "cpu",
            "precision": "auto",
            "variant": None,
            "as_shipped": False,
            "option": option,
        }
        python = self._theirs if tool == "saelens" else Path(sys.executable)
        self._worker(python, TOOLS[tool].worker, folder, settings)
        self._worker(self._theirs, "synthsaebench.py", folder, self._common | {"run": str(folder)}, "judge")
        found = json.loads((folder / "result.json").read_text()) | json.loads((folder / "metrics.json").read_text())
        found["variant"] = variant  # and not the worker's
        for large in folder.glob("*.npy"):
            if large.name != "decoder.npy":
                large.unlink()
        return found

    def _worker(self, python: Path, name: str, folder: Path, settings: dict[str, Any], *command: str) -> None:
        file = folder / f"settings-{'-'.join(command) or 'train'}.json"
        file.write_text(json.dumps(settings))
        with (folder / "log.txt").open("a") as log:
            line = [str(python), str(_WORKERS / name), *command, str(file)]
            subprocess.run(line, stdout=log, stderr=log, env=environment(self._asked.threads), check=True)


def markdown(rows: list[dict[str, Any]], asked: argparse.Namespace) -> str:
    """Returns the table: a row per variant, then the published ones."""
    lines = ["| SAE | samples | seconds | F1 | MCC | uniqueness | explained variance | precision | recall | L0 |"]
    lines.append("|---" * 10 + "|")
    for row in rows:
        values = " | ".join(f"{row[name]:.3f}" for name in _METRICS)
        lines.append(f"| {row['variant']} | {row['tokens']:,} | {row['seconds']:.0f} | {values} | {row['l0']:.1f} |")
    for name, published in _PUBLISHED.items():
        values = " | ".join(f"{value:.3f}" for value in published)
        lines.append(f"| {name}, published | 200,000,000 | – | {values} | – | – | 25.0 |")
    here = machine("cpu")
    recipes = [f"- {row['variant']}: {row['recipe']}." for row in rows]
    command = shlex.join(["benchmarks/synthsaebench.py", *sys.argv[1:]])
    note = f"{asked.rows:,} tokens drawn, {asked.held_out:,} held out; {_LATENTS} latents, width 768, batch "
    note += f"{asked.batch}; {here['cpu']}, {asked.threads} thread(s). `{command}`"
    return "\n".join([*lines, "", note, "", *recipes]) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[*METHODS, *_THEIRS], help="these variants")
    parser.add_argument("--rows", type=int, default=2_000_000, help="tokens to draw; 1.5 kB each on disk")
    parser.add_argument("--held-out", type=int, default=100_000, help="tokens for the metrics")
    parser.add_argument("--samples", type=int, default=20_000_000, help="tokens to train on")
    parser.add_argument("--k", type=int, default=25)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=machine("cpu")["cores"])
    parser.add_argument("--out", default="synthsaebench", help="name of the results")
    return parser.parse_args()


def main() -> None:
    asked, rows = arguments(), []
    bench, out = Bench(asked), _HERE / "results" / asked.out
    out.parent.mkdir(exist_ok=True)
    for variant in asked.only:
        try:
            rows.append(bench.run(variant))
        except subprocess.CalledProcessError as error:
            print(f"{variant}: {error}; see log.txt beside its settings", file=sys.stderr)
            continue
        out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        out.with_suffix(".md").write_text(markdown(rows, asked))
        print(markdown(rows, asked).splitlines()[1 + len(rows)], flush=True)


if __name__ == "__main__":
    main()
