"""A forecast of a run: jobs, time, memory and disk of each rule, from three small runs of the same experiment.

The small runs use few of the images, two of the layers and one of the ks. Time and disk of a job are a constant,
plus a part for each image that it reads, plus a part for each image of the held-out sample. The second run has more
images than the first, the third a larger sample than the second, which tells the parts apart.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae.clusters import MOST_TOKENS
from sae.errors import InputError
from sae.files import read_json
from sae.geometry import Geometry
from sae.images.manifest import MOST_RANKED, choose
from sae.images.reading import image_files

_IMAGES, _SAMPLE = 120, 8  # of the first small run
_MORE_IMAGES, _LARGER_SAMPLE = 2, 3  # times as many in the later ones
_OF_ALL = ("concepts", "images", "manifest", "pixels", "extract", "statistics", "train", "imported")  # read all images
_BY_SHARD = ("pixels", "extract")
_FIGURES = ("_figure", "_figures", "_table", "overview", "conclusion")
_CLUSTERED = ("directions", "baselines")  # read a limited number of tokens
_IN_A_SHARD = 10_000  # images: small enough to make again, large enough that few jobs only start
_GREW = 50  # MB; smaller differences in peak memory are chance


@dataclass(frozen=True)
class Run:
    """A finished small run.

    Attributes:
        jobs: a row per job: rule, wildcards, seconds, peak_mb, bytes.
        images: used images.
        sample: images of the held-out sample.
        idle: seconds of a core between two jobs.
    """

    jobs: pd.DataFrame
    images: int
    sample: int
    idle: float


def estimate(config: Mapping[str, Any], geometry: Geometry, results: Path, cores: int) -> str:
    """Returns the forecast of an experiment's remaining jobs, as text.

    Args:
        config: the complete configuration.
        geometry: of the ViT.
        results: the experiment's folder, results/NAME.
        cores: that the run may use.

    Raises:
        InputError: a small run fails, or the disk has too little room.
    """
    config = _absolute(config)
    total, jobs = _count(config), planned(config, Path.cwd())
    if not jobs:
        return f"{results}: there is nothing left to do"
    with tempfile.TemporaryDirectory(prefix="sae-estimate-") as folder:
        small = smaller(config, geometry)
        first = run(small(1, 1), Path(folder) / "first", cores)
        more_images = run(small(_MORE_IMAGES, 1), Path(folder) / "second", cores)
        larger_sample = run(small(_MORE_IMAGES, _LARGER_SAMPLE), Path(folder) / "second", cores)
    layers, chosen = (np.mean(c["grid"]["layers"]) + 1 for c in (config, small(1, 1)))
    ranked = min(total, MOST_RANKED)
    sample = min(round(total * config["held_out"]), config["evaluation"]["images"])
    # Figures show a limited number of latents, images and classes.
    read = {rule: ranked for rule in jobs if not rule.endswith(_FIGURES)}
    read |= {rule: total for rule in _OF_ALL} | {rule: -(-total // config["shards"]) for rule in _BY_SHARD}
    tokens = len(geometry.roles[geometry.select(config["tokens"])])
    per_image = min(tokens, config["limits"]["tokens_per_image"] or tokens)
    read |= {rule: min(total, MOST_TOKENS // per_image) for rule in _CLUSTERED}
    rows = forecast(jobs, (first, more_images, larger_sample), read, sample, config["extraction"]["batch"])
    rows.loc[rows["rule"] == "extract", "seconds"] *= layers / chosen
    seconds = (rows["seconds"].sum() + first.idle * rows["jobs"].sum()) / cores
    need, free = int(rows["bytes"].sum()), shutil.disk_usage(_existing(results)).free
    told = [
        _table(rows),
        f"{total:,} images, {total * per_image:,} tokens a layer; {rows['jobs'].sum():,} jobs",
        f"about {_duration(seconds)} with {cores} cores, {_size(need)} of disk ({_size(free)} free), "
        f"{_size(rows['peak_mb'].max() * 2**20)} of memory for the largest job",
    ]
    wanted = max(1, round(total / _IN_A_SHARD))
    if not wanted / 2 <= config["shards"] <= wanted * 2:
        told.append(f"better with shards: {wanted}, one per {_IN_A_SHARD:,} images")
    if need > free:
        print("\n".join(told), file=sys.stderr)
        raise InputError(
            f"{results}: the run needs about {_size(need)} of disk, and {_size(free)} are free; make room, or lower "
            "limits.images, limits.tokens_per_image or the number of layers"
        )
    return "\n".join(told)


def smaller(config: Mapping[str, Any], geometry: Geometry) -> Any:
    """Returns the function that makes the configuration of a small run from factors of its images and of its sample."""
    grid, small = config["grid"], copy.deepcopy(dict(config))
    layers, ks = sorted(grid["layers"]), sorted(grid["ks"])
    middle = max(1, len(layers) // 2)
    small["grid"] |= {"layers": layers[middle - 1 : middle + 1], "ks": [ks[len(ks) // 2]], "seeds": grid["seeds"][:2]}
    small |= {"name": "small", "shards": 1, "held_out": max(0.2, config["held_out"]), "image": None, "with": None}
    per_image = len(geometry.roles[geometry.select(config["tokens"])])
    per_image = min(per_image, config["limits"]["tokens_per_image"] or per_image)
    clustered = {*grid["baselines"], *grid["methods"]} & {"kmeans", "sampled", "archetypal"}
    latents = round(config["sae"]["expansion"] * geometry.width) if clustered else 0
    count = max(_IMAGES, -(-2 * latents // per_image))
    most = count // 2 * (1 if config["training"]["whole_images"] else per_image)
    small["training"]["batch"] = min(config["training"]["batch"], most)

    def make(images: int, sample: int) -> dict[str, Any]:
        made = copy.deepcopy(small)
        if config["images"] == "concepts":
            made["concepts"]["count"] = count * images
        else:
            made["limits"]["images"] = count * images
        made["evaluation"]["images"] = _SAMPLE * sample
        return made

    return make


def run(config: Mapping[str, Any], folder: Path, cores: int) -> Run:
    """Runs the workflow in `folder`, and returns what its jobs cost."""
    began = time.perf_counter()
    earlier = {*folder.glob("results/small/receipts/**/*.json")}
    stamps = {path: path.stat().st_mtime_ns for path in earlier}
    _snakemake(config, folder, "--cores", str(cores))
    wall, results = time.perf_counter() - began, folder / "results/small"
    fresh = [p for p in sorted(results.glob("receipts/**/*.json")) if stamps.get(p) != p.stat().st_mtime_ns]
    jobs = read(results)
    table = pd.read_parquet(results / "images.parquet", columns=["status"])
    sample = len(read_json(results / "reference/reference.json")["ids"])
    done = read(results, fresh)
    idle = max(0.0, (wall * cores - done["seconds"].sum()) / len(done))
    return Run(jobs, int((table["status"] == "ok").sum()), sample, idle)


def read(results: Path, receipts: list[Path] | None = None) -> pd.DataFrame:
    """Returns the jobs that made an experiment's files, by their receipts, see `Run`."""
    jobs: dict[tuple[str, ...], dict[str, Any]] = {}
    for path in sorted(results.glob("receipts/**/*.json")) if receipts is None else receipts:
        facts = read_json(path)
        output = results / path.relative_to(results / "receipts").with_suffix("")
        files = [file for file in output.rglob("*") if file.is_file()] if output.is_dir() else [output]
        key = facts["rule"], json.dumps(facts["wildcards"], sort_keys=True), facts["started"]
        new = {"rule": key[0], "wildcards": key[1], "seconds": 0.0, "peak_mb": 0, "bytes": 0}
        job = jobs.setdefault(key, new)
        job["seconds"] = max(job["seconds"], facts["seconds"])
        job["peak_mb"] = max(job["peak_mb"], facts["peak_memory_mb"])
        job["bytes"] += sum(file.stat().st_size for file in [*files, path])
    return pd.DataFrame(jobs.values())


def forecast(
    jobs: Mapping[str, int], runs: tuple[Run, Run, Run], images: Mapping[str, int], sample: int, batch: int
) -> pd.DataFrame:
    """Returns a row per rule: rule, jobs, seconds and bytes of all its jobs, and peak_mb of its largest.

    A rule that no small run has counts as its median job. Differences between runs are medians over the same jobs,
    since a job that something disturbed would count many times over.

    Args:
        jobs: to be done, by rule.
        runs: a small run, one with more images, and one with as many as the second and a larger sample.
        images: that a job of each rule reads; a rule that is not in it costs what it does in the last small run.
        sample: images of the held-out sample.
        batch: images in one pass through the ViT, which no more images of the sample enter at once.
    """
    small = runs[0].jobs.drop(columns="wildcards").groupby("rule").mean()
    by_images, by_sample = (_changes(run.jobs, later.jobs) for run, later in pairwise(runs))
    peaks = [r.jobs.groupby("rule")["peak_mb"].max() for r in runs]
    usual, entering, rows = small.median(), min(sample, batch), []
    for rule, many in jobs.items():
        row: dict[str, Any] = {"rule": rule, "jobs": many}
        for unit in ("seconds", "bytes"):
            by_image = max(0.0, by_images[unit].get(rule, 0.0)) / max(1, runs[1].images - runs[0].images)
            by_one = max(0.0, by_sample[unit].get(rule, 0.0)) / max(1, runs[2].sample - runs[1].sample)
            here = small[unit].get(rule, usual[unit])
            constant = max(0.0, here - by_image * runs[0].images - by_one * runs[0].sample)
            whole, drawn = (images[rule], sample) if rule in images else (runs[2].images, runs[2].sample)
            row[unit] = many * (constant + by_image * whole + by_one * drawn)
        peak = [table.get(rule, usual["peak_mb"]) for table in peaks]
        row["peak_mb"] = max(peak)
        spans = (runs[0].images, runs[1].images, images.get(rule, 0)), (runs[1].sample, runs[2].sample, entering)
        for (low, high), (less, more, whole) in zip(pairwise(peak), spans, strict=True):
            if high - low > _GREW:
                row["peak_mb"] += (high - low) * max(0, whole - more) / max(1, more - less)
        rows.append(row)
    return pd.DataFrame(rows).sort_values("seconds", ascending=False, ignore_index=True)


def _changes(jobs: pd.DataFrame, later: pd.DataFrame) -> pd.DataFrame:
    """Returns by rule the median difference between the same jobs of two runs: seconds and bytes."""
    key, units = ["rule", "wildcards"], ["seconds", "bytes"]
    one, two = (table.groupby(key)[units].last() for table in (jobs, later))
    return (two - one).dropna().groupby("rule").median()


def planned(config: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Returns the number of jobs by rule that a run in `folder` would do."""
    told = _snakemake(config, folder, "-n", "--quiet", "rules")
    found = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", told, re.M)}
    return {rule: n for rule, n in found.items() if rule not in ("all", "total")}


def _snakemake(config: Mapping[str, Any], folder: Path, *options: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    snakefile = Path(__file__).parents[1] / "Snakefile"
    env = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        command = [sys.executable, "-m", "snakemake", "--snakefile", snakefile, "--directory", folder, *options]
        done = subprocess.run(
            [*map(str, command), "--configfile", file.name], capture_output=True, text=True, check=False, env=env
        )
    if done.returncode:
        said = done.stdout + done.stderr
        problem = re.findall(r"^error: (.*)$", said, re.M)
        raise InputError(f"a small run of this experiment fails: {problem[0] if problem else said[-2000:]}")
    return done.stdout + done.stderr


def _absolute(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration with paths that hold in every folder."""
    made = copy.deepcopy(dict(config))
    made.pop("receipts", None)

    def whole(path: str | None) -> str | None:
        return path and str(Path(path).expanduser().absolute())

    if made["images"] != "concepts":
        made |= {"images": whole(made["images"]), "labels": whole(made["labels"])}
    made["imported"] = whole(made["imported"])
    for section in (made["model"], made["evidence"]["embedding"]):
        if section["checkpoint"] != "random":
            section["checkpoint"] = whole(section["checkpoint"])
    if made["imported"] is None:
        made.pop("imported")
    return made


def _count(config: Mapping[str, Any]) -> int:
    """Returns how many images there are to use."""
    if config["images"] == "concepts":
        return min(config["concepts"]["count"], config["limits"]["images"] or config["concepts"]["count"])
    folder = Path(config["images"])
    paths = sorted(image_files(folder))
    return len(choose(paths, folder, config["labels"], config["limits"]["images"] or len(paths)))


def _existing(path: Path) -> Path:
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _table(rows: pd.DataFrame) -> str:
    lines = [("rule", "jobs", "time", "disk", "memory of a job")]
    for row in rows.itertuples():
        size = _size(row.peak_mb * 2**20)
        lines.append((row.rule, f"{row.jobs:,}", _duration(row.seconds), _size(row.bytes), size))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _size(count: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
