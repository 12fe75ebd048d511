"""What every workflow job does around its one call: log, threads, errors, and a record of what made its output."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from sae.errors import InputError
from sae.files import sha256

_RECORDED = ("numpy", "pandas", "pillow", "safetensors", "snakemake", "timm", "torch", "torchvision")
_HASHED_UP_TO = 2**26  # bytes; shards of activations are larger and carry checksums of their own


@contextmanager
def job(snakemake: Any) -> Iterator[Callable[[], dict[str, Any]]]:
    """Runs a rule's script: copies its messages to the rule's log, uses the rule's threads, explains user errors.

    An InputError ends the process with its one line and exit code 1; anything else is a mistake of ours and keeps
    its traceback.

    Args:
        snakemake: the object that Snakemake gives a script.

    Yields:
        a function that returns what made the outputs: rule, wildcards, settings, input hashes, versions, git commit,
        threads, times and peak memory (MB).
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(snakemake.threads)

    def provenance() -> dict[str, Any]:
        return {
            "rule": snakemake.rule,
            "wildcards": dict(snakemake.wildcards),
            "settings": dict(snakemake.params.get("settings", {})),
            "inputs": {
                p: sha256(p) for p in snakemake.input if Path(p).is_file() and Path(p).stat().st_size <= _HASHED_UP_TO
            },
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in _RECORDED},
            "commit": _commit(),
            "machine": platform.machine(),
            "threads": snakemake.threads,
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - clock, 1),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }

    log = Path(snakemake.log[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    terminal = sys.stderr
    with log.open("w") as file:
        sys.stderr = _Both(terminal, file)
        try:
            yield provenance
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except Exception:
            traceback.print_exc(file=file)  # the interpreter prints it too, but to the terminal alone
            raise
        finally:
            sys.stderr = terminal


def grid(paths: Sequence[str]) -> pd.DataFrame:
    """Reads tables of grid points, with the layer, k, method and seed that stand in their paths."""
    table = pd.read_parquet(list(paths), partitioning="hive")
    return table.astype({"layer": int, "k": int, "method": str, "seed": int})


class _Both:
    """A stream that writes to the terminal and to the log."""

    def __init__(self, *streams: TextIO):
        self._streams = streams

    def write(self, text: str) -> int:
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()

    def isatty(self) -> bool:
        return self._streams[0].isatty()

    def fileno(self) -> int:
        return self._streams[0].fileno()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Returns the git commit of the code, marked where files differ from it; None outside a git checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
