"""Trains the same SAEs with this project and with other trainers, in turn, and compares speed and quality.

    uv run python benchmarks/peers.py
    uv run python benchmarks/peers.py --data results/pets/activations/layer=6/shard=*.npy --out pets

Each peer runs in an environment of its own (benchmarks/.environments, made on the first run), the way its documentation
recommends for TopK SAEs: see the file of each under benchmarks/workers. Each run is a fresh process with a schedule
that fits its budget of tokens. The runs of all tools are interleaved, so that a machine that slows down slows all of
them; do nothing else on it meanwhile. Results go to benchmarks/results/<out>.json, .md and .svg.

Equal seconds: after these runs, each peer trains once more on as many tokens as it manages in the seconds that this
project took for the largest budget.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Data, Planted, stored, synthetic
from report import draw, table

from sae.evidence.fidelity import fvu

_HERE = Path(__file__).resolve().parent
_ENVIRONMENTS, _DATA = _HERE / ".environments", _HERE / ".data"
_PYTHON = "3.11"
_COMMON = ("torch==2.15.0", "torchvision==0.29.2", "numpy==2.4.6")  # the project's, so that no tool has better ones
_FEWEST_BATCHES = 4  # of training rows; a worker's warm-up takes as many


@dataclass(frozen=True)
class Tool:
    name: str
    worker: str
    packages: tuple[str, ...] = ()  # none: this project
    option: str | None = None  # of its worker


_SAELENS, _SPARSIFY = ("sae-lens==6.54.12",), ("eai-sparsify==1.3.3",)
TOOLS = {
    "ours": Tool("sae-vit", "train_ours.py"),
    "saelens": Tool("SAELens", "train_saelens.py", _SAELENS),
    "sparsify": Tool("sparsify", "train_sparsify.py", _SPARSIFY),
    "dictionary_learning": Tool("dictionary_learning", "train_dictionary_learning.py", ("dictionary-learning==0.1.0",)),
    # It does not import with matplotlib 3.9 or newer.
    "overcomplete": Tool("Overcomplete", "train_overcomplete.py", ("overcomplete==0.3.0", "matplotlib==3.8.4")),
    # Not its defaults, but documented, and better on some data: run where asked for.
    "saelens_whitened": Tool("SAELens, whitened", "train_saelens.py", _SAELENS, "covariance_whitening"),
    "sparsify_auxk": Tool("sparsify, AuxK", "train_sparsify.py", _SPARSIFY, "auxk"),
}


class Bench:
    """The runs of one call of this script, kept on disk after each.

    Attributes:
        rows: a dictionary per run, with `error` instead of numbers where it failed.
    """

    def __init__(self, asked: argparse.Namespace, data: Data, pythons: dict[str, Path | str]):
        self.asked, self.data = asked, data
        self._pythons = pythons  # an interpreter, or why there is none
        self._planted = data.planted
        self._variants: dict[tuple[str, int], str] = {}  # the fastest, found on a tool's first run at this k
        self.rows: list[dict[str, Any]] = []
        self._runs = _DATA / "runs" / asked.out
        shutil.rmtree(self._runs, ignore_errors=True)  # of an earlier call
        self._facts = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["benchmarks/peers.py", *sys.argv[1:]]),
            "machine": machine(asked.device),
            "data": data.facts,
            "settings": {name: value for name, value in vars(asked).items() if name != "data"},
            "versions": {"sae-vit": version("sae-vit"), "torch": torch.__version__, "numpy": np.__version__},
        }

    def equal_tokens(self) -> None:
        """Trains every tool on every budget."""
        for seed in range(self.asked.rounds):
            for tokens in self.asked.tokens:
                for k in self.asked.ks:
                    for tool in self.asked.tools:
                        self._run(tool, k, tokens, seed, "tokens")

    def equal_seconds(self) -> None:
        """Trains every peer for as long as this project took for the largest budget."""
        most = max(self.asked.tokens)
        for seed in range(self.asked.rounds):
            done = {
                (row["tool"], row["k"]): row
                for row in self.rows
                if (row["seed"], row["asked_tokens"], row["equal"]) == (seed, most, "tokens") and "error" not in row
            }
            for k in self.asked.ks:
                for tool in self.asked.tools:
                    ours, theirs = done.get(("ours", k)), done.get((tool, k))
                    if tool != "ours" and ours and theirs:
                        tokens = round(ours["seconds"] * theirs["tokens"] / theirs["seconds"])
                        self._run(tool, k, tokens, seed, "seconds")

    def write(self) -> str:
        """Writes the results so far; returns them as a table."""
        folder = _HERE / "results"
        folder.mkdir(exist_ok=True)
        facts = self._facts | {"rows": self.rows}
        (folder / f"{self.asked.out}.json").write_text(json.dumps(facts, indent=1) + "\n")
        names = {name: tool.name for name, tool in TOOLS.items()}
        text = table(facts, names, random_recovery(self._planted, self.asked.latents))
        (folder / f"{self.asked.out}.md").write_text(text)
        draw(self.rows, names, folder / f"{self.asked.out}.svg")
        return text

    def _run(self, tool: str, k: int, tokens: int, seed: int, equal: str) -> None:
        print(f"{tool}, k {k}, {tokens:,} tokens, seed {seed}", file=sys.stderr, flush=True)
        row = {"tool": tool, "k": k, "asked_tokens": tokens, "seed": seed, "equal": equal}
        try:
            row |= self._measure(tool, k, tokens, seed)
            self._variants[tool, k] = row["variant"]
        except (RuntimeError, OSError) as error:
            row["error"] = str(error)
            print(f"  {error}", file=sys.stderr, flush=True)
        self.rows.append(row)
        self.write()

    def _measure(self, tool: str, k: int, tokens: int, seed: int) -> dict[str, Any]:
        if isinstance(self._pythons[tool], str):
            raise RuntimeError(self._pythons[tool])
        folder = self._runs / f"{len(self.rows):03d}-{tool}-k{k}"
        folder.mkdir(parents=True)
        settings = {
            "out": str(folder),
            "train": str(self.data.train),
            "held_out": str(self.data.held_out),
            "latents": self.asked.latents,
            "k": k,
            "batch": self.asked.batch,
            "tokens": tokens,
            "lr": self.asked.lr,
            "seed": seed,
            "threads": self.asked.threads,
            "device": self.asked.device,
            "precision": self.asked.precision,
            "variant": self._variants.get((tool, k)),
            "as_shipped": self.asked.as_shipped,
            "option": TOOLS[tool].option,
        }
        file = folder / "settings.json"
        file.write_text(json.dumps(settings))
        command = [str(self._pythons[tool]), str(_HERE / "workers" / TOOLS[tool].worker), str(file)]
        with (folder / "log.txt").open("w") as log:
            code = subprocess.run(command, stdout=log, stderr=log, env=environment(self.asked.threads)).returncode
        if code:
            lines = (folder / "log.txt").read_text(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no output")
            raise RuntimeError(f"exit code {code}: {last.strip()[:300]} (log: {folder.relative_to(_HERE)}/log.txt)")
        result = json.loads((folder / "result.json").read_text())
        result["tokens_per_s"] = result["tokens"] / result["seconds"]
        result |= self._judge(folder)
        for large in folder.iterdir():  # arrays, and what a tool saved; the log and the numbers stay
            if large.is_dir():
                shutil.rmtree(large)
            elif large.suffix == ".npy":
                large.unlink()
        return result

    def _judge(self, folder: Path) -> dict[str, float | None]:
        x, x_hat = np.load(self.data.held_out), np.load(folder / "x_hat.npy")
        if not np.isfinite(x_hat).all():
            raise RuntimeError("its reconstruction is not finite")
        active = np.bitwise_or.reduce(np.load(folder / "active.npy"), axis=0)
        return {
            "fvu": fvu(x, x_hat),
            "dead": float((np.unpackbits(active, count=self.asked.latents) == 0).mean()),
            "recovery": recovery(self._planted, np.load(folder / "decoder.npy")),
        }


def recovery(planted: np.ndarray | None, decoder: np.ndarray) -> float | None:
    """Mean over planted features of the best |cos| with a decoder row; None where nothing is known to be planted."""
    if planted is None:
        return None
    rows = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-12)
    return float(np.abs(planted @ rows.T).max(1).mean())


def random_recovery(planted: np.ndarray | None, latents: int) -> float | None:
    """Returns the recovery of a dictionary of random directions."""
    if planted is None:
        return None
    return recovery(planted, np.random.default_rng(1).standard_normal((latents, planted.shape[1]), np.float32))


def install(tool: Tool) -> Path | str:
    """Returns the interpreter of the tool's own environment, or the reason why there is none."""
    if not tool.packages:
        return Path(sys.executable)
    folder = _ENVIRONMENTS / Path(tool.worker).stem.removeprefix("train_")
    python = folder / "bin" / "python"
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        return "not installed: this needs uv"
    steps = [[uv, "pip", "install", "--quiet", "--python", str(python), *tool.packages, *_COMMON]]
    if not python.exists():
        steps.insert(0, [uv, "venv", "--quiet", "--python", _PYTHON, str(folder)])
    for step in steps:
        # Not in the project's folder: there uv would hold a peer's packages to the project's pins.
        done = subprocess.run(step, cwd=tempfile.gettempdir(), capture_output=True, text=True)
        if done.returncode:
            return f"not installed: {' '.join(done.stderr.split())[-300:]}"
    return python


def environment(threads: int) -> dict[str, str]:
    """Returns the environment variables of a worker: so many threads, and no tool reaches for the network."""
    count = str(threads)
    limits = {name: count for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | limits | offline


def machine(device: str) -> dict[str, Any]:
    """Returns what the times depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "bf16_in_hardware": any("bf16" in line for line in lines),
        "ram_gb": round(memory / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["synthetic"], help="synthetic, or a layer's shards (.npy)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="training rows at most")
    parser.add_argument("--offset", type=float, default=1.0, help="synthetic: γ = ‖mean‖/‖std‖")
    parser.add_argument("--held-out", type=int, default=65_536, help="held-out rows at most")
    parser.add_argument("--latents", type=int, default=3072)
    parser.add_argument("--ks", type=int, nargs="+", default=[64, 32])
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--tokens", type=int, nargs="+", default=[500_000, 2_000_000], help="budgets")
    usual = [name for name, tool in TOOLS.items() if tool.option is None]
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=usual, help=f"default: {' '.join(usual)}")
    parser.add_argument("--install", nargs="+", choices=TOOLS, help="only install these, as tests of exports need them")
    parser.add_argument("--rounds", type=int, default=1, help="repetitions, each with a seed of its own")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "int8"], default="auto", help="ours alone")
    parser.add_argument("--lr", type=float, help="for every tool; without it each takes its own")
    parser.add_argument("--as-shipped", action="store_true", help="keep peers' warm-ups and dead windows of long runs")
    parser.add_argument("--out", default="peers", help="name of the results")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    if asked.install:
        failed = [found for name in asked.install if isinstance(found := install(TOOLS[name]), str)]
        sys.exit("\n".join(failed) or 0)
    if asked.data == ["synthetic"]:
        data = synthetic(_DATA, asked.rows, asked.held_out, Planted(offset=asked.offset))
    else:
        data = stored(_DATA, [Path(shard) for shard in asked.data], asked.rows, asked.held_out)
    if data.facts["rows"] < _FEWEST_BATCHES * asked.batch:
        sys.exit(f"{data.facts['rows']} training rows: at least {_FEWEST_BATCHES} batches of {asked.batch} are needed")
    bench = Bench(asked, data, {name: install(TOOLS[name]) for name in asked.tools})
    bench.equal_tokens()
    bench.equal_seconds()
    print(bench.write())


if __name__ == "__main__":
    main()
