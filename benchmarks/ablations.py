"""The effect of each part of the training recipe on FVU and dead latents: one setting is changed at a time.

    uv run python benchmarks/ablations.py
    uv run python benchmarks/ablations.py --data results/pets/activations/layer=6/shard=*.npy --out ablations-pets

Without --data, it uses a planted dictionary. Results go to benchmarks/results/<out>.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from data import Planted, stored, synthetic
from peers import machine, recovery

import sae
from sae import training
from sae.autoencoder import METHODS
from sae.evidence.fidelity import fvu

_HERE = Path(__file__).resolve().parent


def variants(lr: float) -> dict[str, dict[str, object]]:
    """Returns the changed fields of the config; `centred` says whether the mean is subtracted.

    Args:
        lr: the default learning rate.
    """
    return {
        "default": {},
        "not centred": {"centred": False},
        "LayerNorm in front, raw reconstruction": {"input": "layernorm"},
        "no AuxK": {"auxk": 0.0},
        "AuxK four times as strong": {"auxk": 1 / 8},
        "dead after 5 % of the run": {"dead_after": 0.05},
        "dead after 0.2 % of the run": {"dead_after": 0.002},
        "start from data": {"start": "tokens"},
        "start at the tokens' size": {"start": "scaled"},
        "decoder's norms free": {"decoder": "start"},
        "Adam's usual β, .9 and .999": {"betas": (0.9, 0.999)},
        "no warm-up": {"warmup": 0.0},
        "no decay": {"decay": 0.0},
        "no clipping": {"clip": None},
        "half the learning rate": {"lr": lr / 2},
        "twice the learning rate": {"lr": lr * 2},
        **{f"precision {name}": {"precision": name} for name in ("bf16", "fp32")},
        **{method: {"method": method} for method in METHODS[1:]},
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
    variance, lines = x.var(0, dtype=np.float64), []
    scale = float(np.sqrt(x.shape[1] / variance.sum()))
    not_centred = sae.Source(statistics={"mean": np.zeros(x.shape[1]), "variance": variance, "scale": scale})
    plain = sae.TrainConfig(asked.k, asked.latents, epochs=asked.epochs, batch=asked.batch)
    lr = training.default_lr(asked.latents, asked.epochs * -(-len(x) // asked.batch), asked.batch)
    for name, change in variants(lr).items():
        if asked.only and name not in asked.only:
            continue
        rows, source = [], None if change.pop("centred", True) else not_centred
        for seed in asked.seeds:
            model = sae.train(x, replace(plain, **change), seed, source=source)
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
