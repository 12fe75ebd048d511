"""Everything about a CUDA device, in one run of a few minutes: tests, speeds of the parts, peers, and long runs.

    python benchmarks/gpu.py                      # all parts
    python benchmarks/gpu.py ceilings step peers  # some
    python benchmarks/gpu.py --small --device cpu # a rehearsal, in which every line runs

Each part is a process with a time limit of its own, so that one that fails or hangs costs the others nothing. Results
go to <out>/<part>.json as they come, and all of them to <out>/gpu.md.

    ceilings      copy bandwidth and products in bfloat16
    tests         the tests that need a CUDA device
    step          tokens/s of the training step, sparse and dense, and the time of each kernel
    peers         the same SAE by this project and by others, in turn, all in this process: see `peers.py`
    extraction    images/s of `extraction.extract` and of the bare forward pass
    synthsaebench SynthSAEBench with the number of samples of its authors: see `synthsaebench.py`
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import sae
from sae.autoencoder import SAEConfig, SparseAutoencoder

_HERE = Path(__file__).resolve().parent
_LIMITS = {"ceilings": 60, "tests": 170, "step": 180, "peers": 240, "extraction": 120, "synthsaebench": 420}
_TOOLS = {"ours": "train_ours", "SAELens": "train_saelens", "sparsify": "train_sparsify",
          "dictionary_learning": "train_dictionary_learning"}  # fmt: skip

_ROUNDS = 2  # of each trainer
_SYNTHETIC = ["matryoshka:decoder=start,nested=1", "matryoshka:decoder=start,nested=0.9", "topk:decoder=start"]


class Out:
    """The results of one part: rows, written after each."""

    def __init__(self, folder: Path, part: str):
        self._file, self.rows = folder / f"{part}.json", []

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        self._file.write_text(json.dumps(self.rows, indent=1) + "\n")
        print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}, flush=True)


def seconds(work: Callable[[], Any], device: str, repeat: int = 10) -> float:
    """Returns the least of the mean times of three rounds of calls."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    rehearsal = device == "cpu"  # where kernels are interpreted
    for _ in range(1 if rehearsal else 3):
        work()
    means = []
    for _ in range(1 if rehearsal else 3):
        wait()
        began = time.perf_counter()
        for _ in range(repeat):
            work()
        wait()
        means.append((time.perf_counter() - began) / repeat)
    return min(means)


def ceilings(out: Out, device: str, small: bool) -> None:
    n = 2**10 if small else 2**30
    a, b = (torch.randn(n // 2, device=device) for _ in range(2))
    out.add(name="copy, GB/s", value=2 * a.nbytes / seconds(lambda: b.copy_(a), device) / 1e9)
    side = 64 if small else 8192
    x, y = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    out.add(name="bf16 product, TFLOP/s", value=2 * side**3 / seconds(lambda: x @ y, device) / 1e12)


def tests(out: Out, device: str, small: bool) -> None:
    files = ["tests/test_cuda.py", "tests/training/test_step.py", "tests/test_device.py"]
    only = ["-m", "cuda", *(["-k", "equal_latents and batchtopk"] if small else [])]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "12",
        "--dist",
        "load",
        "-p",
        "no:cacheprovider",
        *only,
        *files,
    ]
    done = subprocess.run(command, cwd=_HERE.parent, capture_output=True, text=True)
    print(done.stdout[-9000:], done.stderr[-2000:], flush=True)
    out.add(code=done.returncode, summary=done.stdout.strip().splitlines()[-1])


def tokens(n: int, width: int, device: str, seed: int = 0, features: int = 4096, active: int = 32) -> torch.Tensor:
    """Returns tokens [n, d] of a planted dictionary with features of different frequency, plus noise and a mean."""
    generator = torch.Generator(device).manual_seed(1234)
    directions = torch.nn.functional.normalize(torch.randn(features, width, generator=generator, device=device))
    rates = 1 / (torch.arange(features, device=device) + 30)
    rates *= active / rates.sum()
    offset = torch.randn(width, generator=generator, device=device)
    generator.manual_seed(seed)
    x = torch.empty(n, width, device=device)
    for part in x.split(2**14):
        draw = torch.rand(len(part), features, generator=generator, device=device)
        z = (draw < rates) * (1 + torch.rand(draw.shape, generator=generator, device=device))
        part.copy_(z @ directions + offset)
        part += 0.1 * torch.randn(part.shape, generator=generator, device=device)
    return x


def step(out: Out, device: str, small: bool) -> None:
    from sae.training import gpu
    from sae.training.autograd import AutogradStep
    from sae.training.gpu import GpuStep
    from sae.training.step import Rows

    points = [(192, 3072, 32, 4096), (768, 24576, 32, 4096), (192, 3072, 64, 16384), (768, 24576, 64, 16384)]
    points = [(16, 16, 2, 2)] if small else points
    sets = {width: tokens(64 if small else 2**19, width, device) for width in {point[0] for point in points}}

    def measure(kind: Any, method: str, width: int, latents: int, k: int, batch: int, dead: bool, **facts: Any) -> None:
        torch.manual_seed(0)
        x = sets[width]
        numbers = torch.randperm(len(x), device=device).split(batch)
        model = SparseAutoencoder(SAEConfig(width, latents, k, method), x.mean(0), 1.0).to(device)
        with torch.no_grad():
            model.W_dec.copy_(torch.nn.functional.normalize(torch.randn_like(model.W_dec)))
            model.W_enc.copy_(model.W_dec)
        precision = "fp32" if device == "cpu" else "bf16"
        one = kind(model, sae.TrainConfig(k, latents, method), -1.0 if dead else 1e15, 10**6, precision)
        one.report()
        turn = iter(range(10**9))

        def go() -> None:
            one(Rows(x, numbers[next(turn) % (len(numbers) - 1)]), 1e-3)

        time_of = seconds(go, device, 1 if small else 20)
        out.add(step=kind.__name__, method=method, width=width, latents=latents, k=k, batch=batch, dead=dead, **facts,
                ms=1000 * time_of, tokens_per_second=batch / time_of)  # fmt: skip
        if device == "cuda" and kind is GpuStep:
            _kernels(go)
        gc.collect()

    for point in points[:2]:
        for warp, at_once in ((512, 4), (2048, 16)):
            with patch.multiple(gpu, _OF_A_WARP=warp, _AT_ONCE=at_once):
                measure(GpuStep, "topk", *point, False, of_a_warp=warp, at_once=at_once)
    for point in points:
        for method in ("topk", "batchtopk", "matryoshka"):
            measure(GpuStep, method, *point, False)
        measure(AutogradStep, "topk", *point, False)
    measure(GpuStep, "topk", *points[0], True)


def _kernels(go: Callable[[], None]) -> None:
    """Prints the time of each kernel of a step, microseconds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(10):
            go()
        torch.cuda.synchronize()
    averages = sorted(found.key_averages(), key=lambda row: -row.device_time_total)
    print("us:", [(row.key[:44], round(row.device_time_total / 10, 1)) for row in averages[:12]], flush=True)


def peers(out: Out, device: str, small: bool) -> None:
    points = [(192, 3072, 32, 4096, 2**22), (768, 24576, 32, 4096, 2**19), (192, 3072, 64, 16384, 2**22)]
    points = [(16, 64, 4, 64, 1024)] if small else points
    protocol = _protocol(device)
    settings = {"out": tempfile.mkdtemp(), "train": "", "held_out": "", "lr": None, "seed": 0, "threads": 8}
    settings |= {"device": device, "precision": "auto", "variant": None, "as_shipped": False, "option": None}
    workers = {}
    for name, module in _TOOLS.items():
        try:
            workers[name] = __import__(module)
        except Exception as error:
            out.add(tool=name, error=repr(error)[:200])
    low = ["float32"] if device == "cpu" else ["bfloat16 autocast"]
    variants = {"SAELens": ["float32", *low], "dictionary_learning": ["float32", *low], "sparsify": ["whole batches"]}
    for width, latents, k, batch, count in points:
        x, new = tokens(count, width, device), tokens(2**10 if small else 2**15, width, device, seed=1)
        asked = protocol.Settings(**settings | {"latents": latents, "k": k, "batch": batch, "tokens": count})
        chosen: dict[str, str] = {}
        for turn in range(_ROUNDS):
            for name, worker in workers.items():
                row = {"tool": name, "width": width, "latents": latents, "k": k, "batch": batch, "round": turn}
                try:
                    if name not in chosen:
                        few = variants.get(name, ["float32"])
                        chosen[name] = protocol._fastest(worker.train, asked, x, few)[0]
                    job = protocol.Job(asked, x, 1, chosen[name], as_shipped=False)
                    trained, time_of = protocol._timed(worker.train, job)
                    guess = torch.cat([trained.reconstruct(part)[0] for part in new.split(2048)])
                    error = (guess.float() - new).double().square().sum()
                    row["fvu"] = float(error / (new - new.mean(0)).double().square().sum())
                    row |= {"tokens": count, "seconds": time_of, "variant": chosen[name], "recipe": trained.recipe}
                    out.add(**row, tokens_per_second=count / time_of)
                    del trained, guess
                except Exception as error:
                    out.add(**row, error=repr(error)[:300])
                gc.collect()


def extraction(out: Out, device: str, small: bool) -> None:
    import timm

    from sae import extraction as extract
    from sae import vit
    from sae.shards import Part

    def measure(name: str, count: int, dtype: str, batch: int) -> None:
        model = timm.create_model(name, **({"img_size": 32, "depth": 2} if small else {})).eval().to(device)
        side, layer = 32 if small else 224, len(model.blocks) - 1
        with tempfile.TemporaryDirectory() as folder:
            pixels, shard = Path(folder, "pixels.npy"), Path(folder, "shard.npy")
            np.save(pixels, np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8))
            for _ in range(2):  # the first readies the device
                began = time.perf_counter()
                extract.extract(model, pixels, [Part(shard, range(count))], layer, batch, dtype)
            rate = count / (time.perf_counter() - began)
        x = torch.randn(batch, 3, side, side, device=device)

        def bare() -> None:
            with torch.inference_mode(), torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
                vit.read(model, x, layer)

        bare_rate = batch / seconds(bare, device, 2 if small else 10)
        out.add(model=name, dtype=dtype, batch=batch, images_per_second=rate, bare=bare_rate)

    for name, count in (("vit_tiny_patch16_224", 4096), ("vit_base_patch16_224", 1024)):
        for dtype in ("float32", "bfloat16"):
            for batch in (4,) if small else (64, 256):
                measure(name, 8 if small else count, dtype, batch)


def synthsaebench(out: Out, device: str, small: bool) -> None:
    protocol = _protocol(device)
    spec = importlib.util.spec_from_file_location("drawer", _HERE / "workers/synthsaebench.py")  # as this script's name
    drawer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawer)
    facts, samples, rows, held_out, latents, k = drawer._CONFIG, 200_000_000, 10_000_000, 50_000, 4096, 25
    if small:
        facts = replace(facts, num_features=512, hidden_dim=32, hierarchy=replace(facts.hierarchy, total_root_nodes=8))
        samples, rows, held_out, latents, k = 20_000, 10_000, 500, 64, 4
    began = time.perf_counter()
    model = drawer.SyntheticModel(facts, device=device)
    out.add(name="model", seconds=time.perf_counter() - began)
    began = time.perf_counter()
    x, new = (torch.empty(n, facts.hidden_dim, device=device, dtype=kind)
              for n, kind in ((rows, torch.float16), (held_out, torch.float32)))  # fmt: skip
    fires = torch.empty(held_out, facts.num_features, dtype=torch.bool, device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for part in x.split(2**13):
            part.copy_(model.feature_dict(model.activation_generator.sample(len(part))))
        for part, truth in zip(new.split(2**13), fires.split(2**13), strict=True):
            features = model.activation_generator.sample(len(part))
            part.copy_(model.feature_dict(features))
            truth.copy_(features > 0)
    directions = model.feature_dict.feature_vectors.detach().float()
    out.add(name="tokens", seconds=time.perf_counter() - began, rows=rows)
    del model
    import train_ours

    common = {"latents": latents, "k": k, "batch": 1024, "tokens": samples, "out": "", "train": "", "held_out": ""}
    common |= {"lr": None, "seed": 0, "threads": 8, "device": device, "precision": "auto", "variant": None}
    for option in _SYNTHETIC:
        asked = protocol.Settings(**common, as_shipped=False, option=option)
        trained, time_of = protocol._timed(train_ours.train, protocol.Job(asked, x, samples // rows, "float32", False))
        detection = drawer.ClassificationMetricsCalculator(trained.decoder, directions)
        variance, active = drawer.ExplainedVarianceCalculator(), 0
        for part, truth in zip(new.split(2**12), fires.split(2**12), strict=True):
            guess, z = trained.reconstruct(part)
            variance.add_batch(guess, part)
            detection.add_batch((z > 0).int(), truth.int())
            active += int((z > 0).sum())
        found = detection.compute()
        mcc = drawer.mean_correlation_coefficient(trained.decoder.cpu(), directions.cpu())
        out.add(variant=option, samples=samples, seconds=time_of, f1=found.f1_score, mcc=mcc,
                uniqueness=drawer.feature_uniqueness(trained.decoder, directions),
                explained_variance=variance.compute(), precision=found.precision, recall=found.recall,
                l0=active / held_out, recipe=trained.recipe)  # fmt: skip
        del trained
        gc.collect()


def _protocol(device: str) -> Any:
    """Returns the module that the workers share. Some read the device from the command line when they are imported."""
    sys.path.insert(0, str(_HERE / "workers"))
    file = Path(tempfile.mkdtemp(), "settings.json")
    file.write_text(json.dumps({"device": device, "option": None, "k": 1}))
    sys.argv = ["gpu", str(file)]
    import protocol

    return protocol


def markdown(folder: Path) -> str:
    """Returns a table for each part that has results."""
    lines = []
    for part in _PARTS:
        if not (folder / f"{part}.json").exists():
            continue
        rows = json.loads((folder / f"{part}.json").read_text())
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines += [f"### {part}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        for row in rows:
            cells = (f"{row[n]:.4g}" if isinstance(row.get(n), float) else str(row.get(n, "")) for n in names)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


_PARTS = {part.__name__: part for part in (ceilings, tests, step, extraction, peers, synthsaebench)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(_PARTS)}; all without any")
    parser.add_argument("--out", type=Path, default=_HERE / "results/gpu")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a rehearsal")
    parser.add_argument("--here", action="store_true", help="run the one part in this process")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.here:
        _PARTS[asked.parts[0]](Out(asked.out, asked.parts[0]), asked.device, asked.small)
        return
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if asked.device == "cpu" else {})
    for part in asked.parts or _PARTS:
        began = time.perf_counter()
        command = [sys.executable, __file__, part, "--here", "--out", str(asked.out), "--device", asked.device]
        try:
            done = subprocess.run([*command, *["--small"] * asked.small], timeout=_LIMITS[part], env=environment)
            end = f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            end = f"stopped after {_LIMITS[part]} s"
        print(f"== {part}: {end}, {time.perf_counter() - began:.0f} s", flush=True)
        (asked.out / "gpu.md").write_text(markdown(asked.out))


if __name__ == "__main__":
    main()
