"""Every method and baseline by every measure, with the mean and the spread over seeds, on the layers of a finished run.

    uv run python benchmarks/methods.py results/concepts --layers 4 --ks 8
    uv run python benchmarks/methods.py results/concepts --layers 4 --ks 8 --only topk topk:epochs=80 kmeans

A variant is a method with changed settings: `topk:expansion=2,epochs=40,decoder=start`; k is a setting too. Other
settings are those of the default experiment. Dictionaries are trained, measured and judged by the functions that the
workflow calls; stability compares each seed with all others. Results go to benchmarks/results/<out>.md and .parquet.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from peers import machine

import sae
from sae import baselines, files, images, measure, vit
from sae.autoencoder import METHODS
from sae.evidence import attribution, judge
from sae.evidence.layer_facts import LayerFacts
from sae.evidence.measures import COMPARED, MEASURES
from sae.geometry import Geometry
from sae.layer import Layer
from sae.training.config import BASELINES as FROZEN

_HERE = Path(__file__).resolve().parent
_VARIANTS = [
    *METHODS,
    *("neurons", "pca", "ica", "kmeans", "random", "sampled", *FROZEN),
]
_ALSO = {"dead": "dead", "confirmed": "confirmed class", "twin": "cosine with twin", "seconds": "seconds"}


class Bench:
    """The images and the ViT of a finished run, and dictionaries of one of its layers.

    Args:
        results: the folder of the run; it needs the layers, the reference and the manifest.
        number: of the layer.
        model: of the run, see `vit.load`.
    """

    def __init__(self, results: Path, number: int, model: dict[str, Any]):
        manifest = images.read_manifest(results / "manifest.parquet")
        reference = files.read_json(results / "reference/reference.json")
        self._geometry, folder = Geometry(**reference["geometry"]), results / f"activations/layer={number}"
        shards, statistics = sorted(folder.glob("shard=*.npy")), files.read_json(folder / "statistics.json")
        here = Layer(shards, manifest, reference, statistics)
        facts = LayerFacts.load(folder / "layer.safetensors")
        backbone, logits = vit.load(**model), np.load(results / "reference/logits.npy")
        whole = here.tokens("all", here.sample)
        slopes = attribution.gradients(backbone, whole, number, here.selected, *here.centre)
        drawn = folder / "pairs.safetensors"  # of the built-in images alone
        pairs = files.read_arrays(drawn)[0]["tokens"] if drawn.exists() else None
        self._setup = measure.Setup(here, facts, backbone, logits, slopes, pairs=pairs)
        last, coverage = number == self._geometry.blocks - 1, results / "reference/coverage.npy"
        embedding = np.load(results / f"reference/{'thumbnails' if last else 'features'}.npy")
        covered = np.load(coverage) if coverage.exists() else None
        self._shown = judge.Images(here.ranked, here.sample, embedding, covered, reference["class_names"])
        self._number, self._x = number, here.tokens(statistics["tokens"], here.train)

    def run(self, k: int, text: str, seeds: list[int], plain: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns a row per seed and measure: k, variant, seed, measure, value."""
        made = {seed: self._make(k, text, seed, plain) for seed in seeds}
        measured = {seed: measure.measure(model, self._setup, False) for seed, (model, _seconds) in made.items()}
        rows = []
        for seed, (model, seconds) in made.items():
            found = []
            for s, (each, _seconds) in made.items():
                parts = measured[s].codes, measured[s].responses, measured[s].attributions
                found.append(judge.Dictionary(s, each.W_dec.numpy(), *parts))
            own = found.pop(seeds.index(seed))
            tokens, limits = self._setup.layer.statistics["tokens"], judge.Limits()
            others = {other.seed: other for other in found}
            tables = judge.judge(own, others, self._shown, self._setup.facts, self._geometry, tokens, limits)
            latents = tables["latents"]
            alive = (latents["status"] == "alive").to_numpy()
            values = tables["summary"].set_index("measure")["value"].to_dict()
            values |= {"dead": 1 - alive.mean(), "seconds": seconds}
            values["confirmed"] = latents.loc[alive, "confirmed"].mean()
            values["twin"] = latents.loc[alive, "stability_cosine"].median()
            rows += [
                {"k": model.config.k, "variant": text, "seed": seed, "measure": m, "value": v}
                for m, v in values.items()
            ]
        return rows

    def _make(self, k: int, text: str, seed: int, plain: dict[str, Any]) -> tuple[sae.SparseAutoencoder, float]:
        method, _, changes = text.partition(":")
        settings = plain | {
            key: yaml.safe_load(value) for key, value in (c.split("=") for c in changes.split(",") if c)
        }
        latents, k = round(settings.pop("expansion") * self._x.width), settings.pop("k", k)
        started, statistics = time.perf_counter(), self._setup.layer.statistics
        if method in baselines.COMPUTED:
            centre = self._setup.layer.centre
            rows = baselines.directions(self._x, latents, method, centre, seed)
            fit = None if method in baselines.ORTHONORMAL else baselines.sample(self._x, method, centre, seed)
            model = baselines.build(rows, fit, k, method, centre, self._number, statistics["tokens"])
        else:
            config = sae.TrainConfig(k, latents, method, **settings)
            model = sae.train(self._x, config, seed, "cpu", sae.Source(self._number, statistics["tokens"], statistics))
        return model, time.perf_counter() - started


def markdown(rows: pd.DataFrame) -> str:
    """Returns a table: a row per layer, k and variant, a column per measure, with mean ± standard deviation."""
    columns = [key for key in (*COMPARED, *_ALSO) if key in set(rows["measure"])]
    names = [MEASURES[key].name if key in COMPARED else _ALSO[key] for key in columns]
    lines = ["| layer | k | variant | " + " | ".join(names) + " |", "|---" * (len(names) + 3) + "|"]
    for (number, k, text), part in rows.groupby(["layer", "k", "variant"], sort=False):
        values = part.groupby("measure")["value"].agg(["mean", "std"]).reindex(columns)
        cells = ["–" if np.isnan(mean) else f"{mean:.3f} ± {std:.3f}" for mean, std in values.to_numpy()]
        lines.append(f"| {number} | {k} | {text} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the folder of a finished run")
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument("--ks", type=int, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="two or more")
    parser.add_argument("--only", nargs="+", default=_VARIANTS, help="these variants")
    parser.add_argument("--model", default="vit_tiny_concepts", help="of the run")
    parser.add_argument("--checkpoint", help="of the run")
    parser.add_argument("--out", default="methods", help="name of the results")
    return parser.parse_args()


def main() -> None:
    asked, rows = arguments(), []
    default = yaml.safe_load((_HERE.parent / "config.yaml").read_text())
    plain = default["training"] | default["sae"]
    out = _HERE / "results" / asked.out
    out.parent.mkdir(exist_ok=True)
    command = shlex.join(["benchmarks/methods.py", *sys.argv[1:]])
    for number in asked.layers:
        bench = Bench(asked.results, number, {"name": asked.model, "checkpoint": asked.checkpoint})
        for k in asked.ks:
            for text in asked.only:
                rows += [{"layer": number} | row for row in bench.run(k, text, asked.seeds, plain)]
                table = pd.DataFrame(rows)
                print(markdown(table).splitlines()[-1], flush=True)
                table.to_parquet(out.with_suffix(".parquet"))
                note = f"\nMean ± standard deviation over the seeds {asked.seeds}; {machine('cpu')['cpu']}, torch "
                note += f"{torch.__version__}. `{command}`\n"
                out.with_suffix(".md").write_text(markdown(table) + note)


if __name__ == "__main__":
    main()
