"""Every workflow job runs inside `job`: it checks the inputs, writes the log, explains errors, and writes receipts."""

from __future__ import annotations

import io
import platform
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from sae.errors import InputError, shortage
from sae.files import trusted
from sae.verify import compared, write_receipts

_RECORDED = (
    *("matplotlib", "numba", "numpy", "pandas", "pillow", "pyarrow", "safetensors", "scikit-learn", "scipy"),
    *("snakemake", "timm", "torch", "torchvision"),
)


@contextmanager
def job(snakemake: Any) -> Iterator[Callable[[], dict[str, Any]]]:
    """Runs a rule's script: compares its inputs with their receipts, copies its messages to the rule's log, explains
    user errors, and writes the receipts of its outputs, see `verify`.

    An InputError ends the process with its one line and exit code 1, as do a full disk, too little memory and missing
    permissions. Any other error is a bug and keeps its traceback.
    The log of a job that succeeds ends with its time and its peak memory.

    Args:
        snakemake: the object that Snakemake gives a script. Its config says whether there are `receipts`.

    Yields:
        a function that returns the outputs' provenance: rule, wildcards, settings, hashes of the inputs, versions and
        threads. The receipts add the git commit, the time of the start, the seconds and the peak memory (MB).
    """
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()

    @cache
    def origin() -> dict[str, Any]:
        return {
            "rule": snakemake.rule,
            "wildcards": dict(snakemake.wildcards),
            "settings": dict(snakemake.params.get("settings", {})),
            "weights": snakemake.params.get("weights"),
            "inputs": inputs,
            "versions": versions(),
            "machine": platform.machine(),
            "threads": snakemake.threads,
        }

    def cost() -> dict[str, Any]:
        unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss: bytes there, kilobytes elsewhere
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
        return {"seconds": round(time.perf_counter() - clock, 1), "peak_memory_mb": peak}

    log = Path(snakemake.log[0])
    results = next(folder.parent for folder in log.parents if folder.name == "logs")
    receipts = results if snakemake.config["receipts"] else None
    with _opened(log) as file, redirect_stderr(_Both(sys.stderr, file)):
        try:
            inputs = compared(snakemake.input, receipts)
            yield origin
            write_receipts(snakemake.output, receipts, origin() | {"commit": _commit(), "started": started} | cost())
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except Exception as error:
            if told := shortage(error, next(iter(snakemake.output), results)):
                print(f"error: {told}", file=sys.stderr)
                sys.exit(1)
            traceback.print_exc(file=file)  # the interpreter prints it too, but to the terminal alone
            raise
        finally:
            trusted.clear()
        spent = cost()
        print(f"rule {snakemake.rule}: {spent['seconds']} s, peak memory {spent['peak_memory_mb']} MB", file=file)


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages that results depend on; None: not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _RECORDED}


def listed(paths: Any) -> list[str]:
    """Returns the files of one name of a rule's input or output as a list: Snakemake gives a lone file as text."""
    return [paths] if isinstance(paths, str) else list(paths)


def source(snakemake: Any) -> tuple[str, str | None]:
    """Returns the folder of images and its labels CSV: drawn images are an input of the rule, others in the config."""
    if drawn := snakemake.input.get("concepts"):
        return f"{drawn}/images", f"{drawn}/images/labels.csv"
    return snakemake.config["images"], snakemake.config["labels"]


def _opened(log: Path) -> TextIO:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return io.TextIOWrapper(_Log(log, "w"), write_through=True)
    except OSError as error:
        sys.exit(f"error: {shortage(error, log) or error}")


class _Log(io.FileIO):
    """A file whose text is lost while the disk is full: the job tells of that itself."""

    def write(self, text: Any) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)


class _Both:
    """The terminal, whose text is copied to the log; progress bars ask it for the rest of a terminal's abilities."""

    def __init__(self, terminal: TextIO, log: TextIO):
        self._terminal, self._log = terminal, log

    def write(self, text: str) -> int:
        self._log.write(text)
        return self._terminal.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._terminal, name)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Returns the git commit of the code, marked if files differ from it; None outside a git checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
