"""The cost of one training step by number of latents, width, k and batch: sparse kernels and autograd.

    uv run python benchmarks/cost.py

Each of the four is varied alone, the runs of both ways interleaved. Results go to benchmarks/results/<out>.md and .svg.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from peers import machine

import sae
from sae.training.autograd import AutogradStep
from sae.training.sparse import SparseStep
from sae.training.start import untrained
from sae.training.step import Step

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

_HERE = Path(__file__).resolve().parent
_WAYS = {"sparse kernels": SparseStep, "autograd": AutogradStep}
_USUAL = {"latents": 3072, "width": 192, "k": 32, "batch": 4096}
_VARIED = {
    "latents": [1024, 2048, 4096, 8192, 16384, 32768, 65536],
    "width": [96, 192, 384, 768],
    "k": [8, 16, 32, 64, 128],
    "batch": [256, 1024, 4096, 16384],
}


def build(way: str, latents: int, width: int, k: int) -> Step:
    x, config = sae.Activations.of(np.eye(width, dtype=np.float32)), sae.TrainConfig(k, latents)
    model = untrained(x, config, sae.Source().measured(x))
    return _WAYS[way](model, config, float("inf"), 100, "fp32")


def seconds(step: Step, x: torch.Tensor) -> float:
    began = time.perf_counter()
    step(x, 1e-4)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3, help="the median is taken")
    parser.add_argument("--out", default="cost", help="name of the results")
    asked = parser.parse_args()
    rows: list[tuple[str, int, str, float]] = []
    for name, values in _VARIED.items():
        for value in values:
            shape = _USUAL | {name: value}
            batch = shape.pop("batch")
            x = torch.randn(batch, shape["width"])
            taken: dict[str, list[float]] = {way: [] for way in _WAYS}
            for _ in range(asked.repeats):
                for way in _WAYS:
                    torch.set_num_threads(asked.threads)
                    step = build(way, **shape)
                    seconds(step, x[: min(batch, 1024)])  # caches
                    taken[way].append(seconds(step, x))
                    step.close()
            for way, times in taken.items():
                rows.append((name, value, way, batch / float(np.median(times))))
                print(*rows[-1], flush=True)
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), sharey=True, layout="constrained")
    for ax, (name, values) in zip(axes, _VARIED.items(), strict=True):
        for way, mark in zip(_WAYS, ("o-", "s--"), strict=True):
            ax.plot(values, [speed for n, _, w, speed in rows if (n, w) == (name, way)], mark, label=way)
        ax.set(xscale="log", yscale="log", xlabel=name, title=f"{name} (otherwise {_USUAL[name]:,})")
        ax.set_xticks(values, [f"{v // 1024}k" if v >= 1024 else str(v) for v in values])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("tokens per second")
    axes[0].legend()
    facts = machine("cpu")
    figure.suptitle(f"One training step on {facts['cpu']}, {asked.threads} threads", x=0.01, ha="left")
    (_HERE / "results").mkdir(exist_ok=True)
    figure.savefig(_HERE / "results" / f"{asked.out}.svg")
    lines = ["| varied | value | sparse kernels, tokens/s | autograd, tokens/s | ratio |", "|---|---|---|---|---|"]
    for name, values in _VARIED.items():
        for value in values:
            fast, slow = (next(s for n, v, w, s in rows if (n, v, w) == (name, value, way)) for way in _WAYS)
            lines.append(f"| {name} | {value:,} | {fast:,.0f} | {slow:,.0f} | {fast / slow:.1f} |")
    usual = ", ".join(f"{name} {value}" for name, value in _USUAL.items())
    lines += [
        "",
        f"Otherwise {usual}; float32; median of {asked.repeats}; {facts['cpu']}, {asked.threads} threads, torch ",
    ]
    lines[-1] += f"{torch.__version__}. `{shlex.join(['benchmarks/cost.py', *sys.argv[1:]])}`"
    (_HERE / "results" / f"{asked.out}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
