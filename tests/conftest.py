"""Fixtures and helpers: a folder of pictures, small models, and running the workflow as a user does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from sae import images

ROOT = Path(__file__).parent.parent
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network, not even to fail slowly
_is_available, _VISIBLE = torch.cuda.is_available, os.environ.get("CUDA_VISIBLE_DEVICES", "0")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels for a GPU run in Python; read when they are defined
# Runs the workflow without a network, where this machine lets us.
CUT = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net"]
if not shutil.which("unshare") or subprocess.run([*CUT, "true"], capture_output=True, check=False).returncode:
    CUT = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files that take longest, so that no worker is left alone with one at the end."""
    longest = (
        "test_workflow",
        "test_warm",
        "test_docs",
        "test_crashes",
        "test_own_images",
        "test_slurm",
        "test_storage",
    )
    items.sort(key=lambda item: item.path.stem not in longest)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Sets the device, one thread, and a seed for random numbers without one of their own, as in untrained ViTs."""
    cuda = item.get_closest_marker("cuda") is not None  # other tests give the same on every machine
    torch.cuda.is_available = _is_available if cuda else lambda: False
    os.environ["CUDA_VISIBLE_DEVICES"] = _VISIBLE if cuda else ""  # for processes that a test starts
    torch.set_num_threads(1)
    torch.manual_seed(0)


def manifest(folder: Path, labels: Path | None = None, held_out: float = 0.5) -> pd.DataFrame:
    """Lists and labels the images of a folder, as the rules `images` and `manifest` do."""
    return images.label(images.list_images(folder, labels, held_out), folder, labels)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB", **save: object) -> Path:
    """Writes an image that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **save)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder of 12 images in two classes."""
    folder = tmp_path / "pets"
    for i in range(12):
        picture(folder / ("cat" if i % 2 else "dog") / f"{i}.png", seed=i)
    return folder


Run = Callable[..., subprocess.CompletedProcess]


def snakemake(
    folder: Path, *arguments: str, config: dict | None = None, cores: int | None = 2, **environment: str
) -> subprocess.CompletedProcess:
    """Runs the workflow in `folder` and without a network, its config laid over the default one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["-s", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += [*(["--cores", str(cores)] if cores else []), *arguments]
    if config is not None:
        file = folder / "experiment.yaml"
        file.write_text(yaml.safe_dump(config))
        command += ["--configfile", str(file)]
    if any(name.startswith("PYTHON") for name in environment):  # what Python reads at its own start
        command = [*CUT, sys.executable, "-m", "snakemake", *command]
        return subprocess.run(
            command, capture_output=True, text=True, env=os.environ | environment, cwd=ROOT, check=False
        )
    return forked(command, ROOT, os.environ | environment)


@cache
def _forks() -> subprocess.Popen:
    command = [*CUT, sys.executable, str(ROOT / "tests/forks.py")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def forked(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess:
    """Runs Snakemake's command line in this folder, see forks.py."""
    server = _forks()
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        asked = {"arguments": list(arguments), "environment": dict(environment), "folder": str(folder)}
        try:
            server.stdin.write(json.dumps(asked | {"out": str(out), "err": str(err)}) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
        except BaseException:  # no later test may read the answer to this one
            server.kill()
            _forks.cache_clear()
            raise
        return subprocess.CompletedProcess(["snakemake", *arguments], code, out.read_text(), err.read_text())


def planned(folder: Path, *arguments: str, config: dict) -> dict[str, int]:
    """Returns what a dry run would do: rule -> number of jobs, without `all`."""
    done = snakemake(folder, *arguments, "-n", "--quiet", "rules", config=config)
    assert done.returncode == 0, done.stderr
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.M))
    return {rule: int(n) for rule, n in jobs.items() if rule not in ("total", "all", "layers")}


def planted(n=20_000, d=32, features=48, active=3, seed=0, offset=2.0):
    """Returns activations [n, d], sums of `active` of `features` directions, and the directions [features, d]."""
    rng = np.random.default_rng(seed)
    dictionary = rng.standard_normal((features, d))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    codes = np.zeros((n, features))
    chosen = rng.random((n, features)).argpartition(active, axis=1)[:, :active]
    np.put_along_axis(codes, chosen, rng.uniform(1, 3, (n, active)), 1)
    x = codes @ dictionary + 0.02 * rng.standard_normal((n, d)) + offset * rng.standard_normal(d)
    return x.astype(np.float32), dictionary


@pytest.fixture(scope="session")
def drawn():
    return planted(n=22_000)


@pytest.fixture(scope="session")
def data(drawn):
    return drawn[0][:20_000], drawn[1]
