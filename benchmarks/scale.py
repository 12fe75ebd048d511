"""Memory and time of each rule by the number of images, for a small random ViT.

    uv run python benchmarks/scale.py
    uv run python benchmarks/scale.py --images 1000 10000

Draws that many images of 64 pixels, runs the whole workflow on each set, one job at a time, and reads the cost of each
rule from its logs. Results go to benchmarks/results/<out>.md and .svg; images and runs stay in benchmarks/.data/scale.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import rules
import yaml
from peers import machine
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_HERE = Path(__file__).resolve().parent
_CLASSES, _SIDE = 20, 64
# The rules that the figure shows.
_SHOWN = ("images", "pixels", "reference", "extract", "statistics", "layer", "train", "measure", "evidence", "explorer")


def draw(folder: Path, count: int) -> None:
    """Writes `count` JPEGs into folders of 20 classes: a colour of the class under smooth noise."""
    if (folder / "done").exists():
        return
    colours = np.random.default_rng(0).uniform(60, 200, (_CLASSES, 3))
    for label in range(_CLASSES):
        (folder / f"class_{label:02d}").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng, label = np.random.default_rng([1, number]), number % _CLASSES
        coarse = np.clip(colours[label] + rng.normal(0, 50, (8, 8, 3)), 0, 255).astype(np.uint8)
        image = Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        image.save(folder / f"class_{label:02d}" / f"{number:06d}.jpg", quality=85)
    (folder / "done").touch()


def run(folder: Path, images: Path, count: int) -> pd.DataFrame:
    """Runs the workflow from nothing in `folder`; returns the cost of each rule, see `rules.summarise`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {
        "name": "scale",
        "images": str(images),
        "shards": -(-count // 10_000),
        "model": {"name": "test_vit", "checkpoint": "random", "image_size": _SIDE},
        "grid": {"layers": [3], "ks": [8], "baselines": ["random"]},
        "sae": {"expansion": 4},
        "training": {"epochs": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["snakemake", "--snakefile", str(_HERE.parent / "Snakefile"), "--cores", "1", "--quiet", "all"]
    log = folder / "log.txt"
    with log.open("w") as file:
        command += ["--directory", str(folder), "--configfile", str(folder / "config.yaml")]
        done = subprocess.run(command, stdout=file, stderr=file, env=os.environ | {"TQDM_DISABLE": "1"})
    if done.returncode:
        raise SystemExit(f"error: the run failed; see {log}")
    return rules.summarise(folder / "results/scale")


def markdown(tables: dict[int, pd.DataFrame]) -> str:
    """Returns the peak memory and the seconds of each rule by number of images, and how both grow at the end.

    The growth of memory is the last peak by the one before, that of time is of the seconds per image.
    """
    small, large = list(tables)[-2:]
    head = ["rule", *(f"MB, {n:,}" for n in tables), "growth", *(f"s, {n:,}" for n in tables), "growth per image"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for rule in (rule for rule in tables[large].index if rule != "wall time"):
        peaks, seconds = (
            {n: table[kind].get(rule, np.nan) for n, table in tables.items()} for kind in ("peak_mb", "seconds")
        )
        memory, time = peaks[large] / peaks[small], seconds[large] / seconds[small] * small / large
        cells = [*(f"{peak:.0f}" for peak in peaks.values()), f"{memory:.2f}"]
        lines.append([str(rule), *cells, *(f"{second:.1f}" for second in seconds.values()), f"{time:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_figure(tables: dict[int, pd.DataFrame]) -> plt.Figure:
    counts = list(tables)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for rule in _SHOWN:
        axes[0].plot(counts, [table.loc[rule, "peak_mb"] for table in tables.values()], "o-", label=rule)
        axes[1].plot(counts, [t.loc[rule, "seconds"] / n * 1000 for n, t in tables.items()], "o-", label=rule)
    axes[0].set(title="Peak memory of a job (MB)", xscale="log", ylim=(0, None), xlabel="images")
    axes[1].set(title="Time per image, all jobs of a rule (ms)", xscale="log", yscale="log", xlabel="images")
    for ax in axes:
        ax.set_xticks(counts, [f"{n:,}" for n in counts])
        ax.grid(alpha=0.3)
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--data", type=Path, default=_HERE / ".data/scale", help="folder of images and runs")
    parser.add_argument("--out", default="scale", help="name of the results")
    asked = parser.parse_args()
    tables = {}
    for count in sorted(asked.images):
        draw(asked.data / f"images-{count}", count)
        tables[count] = run(asked.data / f"run-{count}", asked.data / f"images-{count}", count)
        print(f"{count:,} images: {tables[count].loc['wall time', 'seconds']:.0f} s", flush=True)
    (_HERE / "results").mkdir(exist_ok=True)
    draw_figure(tables).savefig(_HERE / "results" / f"{asked.out}.svg")
    told = f"{machine('cpu')['cpu']}, one job at a time. `{shlex.join(['benchmarks/scale.py', *sys.argv[1:]])}`"
    (_HERE / "results" / f"{asked.out}.md").write_text(f"{markdown(tables)}\n\n{told}\n")


if __name__ == "__main__":
    main()
