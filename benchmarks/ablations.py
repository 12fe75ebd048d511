"""What each part of the training recipe does to reconstruction and dead latents: one thing changed at a time.

    uv run python benchmarks/ablations.py
    uv run python benchmarks/ablations.py --data results/pets/activations/layer=6/shard=*.npy --out ablations-pets

Without --data on a planted dictionary. Results go to benchmarks/results/<out>.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from data import Planted, stored, synthetic
from peers import machine, recovery

import sae
from sae import training
from sae.evidence.fidelity import fvu
from sae.training.step import Recipe

_HERE = Path(__file__).resolve().parent


def from_data(x: np.ndarray) -> Callable[..., sae.SparseAutoencoder]:
    """Returns a start whose decoder rows point from the mean to random tokens, the encoder tied to them."""
    plain = training._start

    def start(settings: object, recipe: Recipe, centre: np.ndarray, scale: float, seed: int) -> sae.SparseAutoencoder:
        model = plain(settings, recipe, centre, scale, seed)
        rows = x[np.random.default_rng(seed).choice(len(x), model.config.latents)] - centre
        with torch.no_grad():
            model.W_dec.copy_(torch.nn.functional.normalize(torch.from_numpy(rows).float()))
            model.W_enc.copy_(model.W_dec)
        return model

    return start


def scaled(x: np.ndarray) -> Callable[..., sae.SparseAutoencoder]:
    """Returns a start whose encoder is scaled so that the first tokens are reconstructed at their size.

    Many latents that point the same way reconstruct a token several times too large when k of them are active.
    """
    plain = training._start

    def start(settings: object, recipe: Recipe, centre: np.ndarray, scale: float, seed: int) -> sae.SparseAutoencoder:
        model = plain(settings, recipe, centre, scale, seed)
        with torch.no_grad():
            target = model.standardise(torch.from_numpy(x[:2048]).float())
            values, latents = model.pre_activations(target).topk(model.config.k)
            x_hat = (values.relu()[:, :, None] * model.W_dec[latents]).sum(1)
            model.W_enc *= (target * x_hat).sum() / x_hat.square().sum()
        return model

    return start


def variants(lr: float) -> dict[str, dict[str, object]]:
    """Returns what is changed: arguments of `sae.train`, fields of the recipe under `recipe`, or the start.

    Args:
        lr: the default learning rate.
    """
    return {
        "default": {},
        "not centred": {"centred": False},
        "LayerNorm in front, raw reconstruction": {"recipe": {"input": "layernorm"}},
        "no AuxK": {"recipe": {"auxk": 0.0}},
        "AuxK four times as strong": {"recipe": {"auxk": 1 / 8}},
        "dead after 5 % of the run": {"recipe": {"dead_after": 0.05}},
        "dead after 0.2 % of the run": {"recipe": {"dead_after": 0.002}},
        "start from data": {"start": from_data},
        "start at the tokens' size": {"start": scaled},
        "decoder's norms free": {"recipe": {"decoder": "start"}},
        "Adam's usual β, .9 and .999": {"recipe": {"betas": (0.9, 0.999)}},
        "no warm-up": {"recipe": {"warmup": 0.0}},
        "no decay": {"recipe": {"decay": 0.0}},
        "no clipping": {"recipe": {"clip": None}},
        "half the learning rate": {"recipe": {"lr": lr / 2}},
        "twice the learning rate": {"recipe": {"lr": lr * 2}},
        **{f"precision {name}": {"precision": name} for name in ("bf16", "fp32")},
        **{method: {"method": method} for method in ("batchtopk", "matryoshka", "jumprelu", "relu")},
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["synthetic"], help="synthetic, or a layer's shards (.npy)")
    parser.add_argument("--rows", type=int, default=500_000, help="training rows at most")
    parser.add_argument("--held-out", type=int, default=32_768, help="held-out rows at most")
    parser.add_argument("--latents", type=int, default=3072)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="these variants")
    parser.add_argument("--out", default="ablations", help="name of the results")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    if asked.data == ["synthetic"]:
        data = synthetic(_HERE / ".data", asked.rows, asked.held_out, Planted())
    else:
        data = stored(_HERE / ".data", [Path(shard) for shard in asked.data], asked.rows, asked.held_out)
    x, held_out, planted = np.load(data.train), np.load(data.held_out), data.planted
    spread = float(np.sqrt(x.shape[1] / x.var(0).sum()))
    plain, lines = training._start, []
    lr = training.default_lr(asked.latents, asked.epochs * -(-len(x) // asked.batch), asked.batch)
    for name, change in variants(lr).items():
        if asked.only and name not in asked.only:
            continue
        rows = []
        for seed in asked.seeds:
            training._start = plain
            if "start" in change:
                training._start = change["start"](x)
            model = sae.train(
                x,
                asked.k,
                asked.latents,
                change.get("method", "topk"),
                seed,
                asked.epochs,
                asked.batch,
                precision=change.get("precision", "auto"),
                recipe=replace(Recipe(), **change.get("recipe", {})),
                centre=None if change.get("centred", True) else (np.zeros(x.shape[1]), spread),
            )
            x_hat, fired = np.empty_like(held_out), 0
            for first in range(0, len(held_out), 4096):
                z = model.encode(held_out[first : first + 4096])
                x_hat[first : first + 4096] = model.decode(z)
                fired = fired + (z > 0).sum(0)
            found = recovery(planted, model.W_dec.numpy())
            rows.append((fvu(held_out, x_hat), (fired == 0).mean(), fired.sum() / len(held_out), found))
        columns = list(zip(*rows, strict=True))
        found = "–" if planted is None else f"{mean(columns[3]):.3f}"
        lines.append(f"| {name} | {mean(columns[0]):.4f} | {mean(columns[1]):.1%} | {mean(columns[2]):.1f} | {found} |")
        print(lines[-1], flush=True)
    facts = machine("cpu")
    text = "| change | held-out FVU | dead | L0 | recovery |\n|---|---|---|---|---|\n" + "\n".join(lines) + "\n\n"
    text += f"{len(x) * asked.epochs:,} tokens ({data.facts['kind']}), width {x.shape[1]}, {asked.latents} latents, "
    text += f"k {asked.k}, batch {asked.batch}, mean of {len(asked.seeds)} seed(s); {facts['cpu']}, torch "
    text += f"{torch.__version__}. `{shlex.join(['benchmarks/ablations.py', *sys.argv[1:]])}`\n"
    (_HERE / "results").mkdir(exist_ok=True)
    (_HERE / "results" / f"{asked.out}.md").write_text(text)


if __name__ == "__main__":
    main()
