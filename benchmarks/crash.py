"""Kills Snakemake or one of its jobs at random moments, recovers, and compares the results.

    uv run python benchmarks/crash.py --kills 50

A small experiment with every rule runs once undisturbed. Then the same experiment runs in another folder, over and
over; after random times, Snakemake or one of its jobs gets `kill -9`. The same command goes on, after `--unlock` where
Snakemake was killed, until the next kill or the end. Then the results must be those of the undisturbed run, byte for
byte. Prints a line for each kill, and a tally; exits with 1 if a run did not recover or a file differs.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import yaml

from sae.files import sha256

ROOT = Path(__file__).parent.parent
CONFIG = {
    "name": "crash",
    "concepts": {"count": 60},
    "grid": {"layers": [2, 3], "ks": [2, 4], "baselines": ["pca", "frozen"]},
    "sae": {"expansion": 1},
    "training": {"epochs": 4, "batch": 256},
    "ranking": {"support": 2},
    "evidence": {"latents": 4, "images": 2},
    "report": {"latents": 4, "images": 4},
    "explorer": {"images": 20},
}


def contents(results: Path) -> dict[str, str]:
    """Returns the hash of each file of a run's results, by its path, but for logs and receipts, which hold times."""
    files = (path for path in sorted(results.rglob("*")) if path.is_file() and path.name != ".snakemake_timestamp")
    paths = {str(path.relative_to(results)): path for path in files}
    return {name: sha256(path) for name, path in paths.items() if not name.startswith(("logs/", "receipts/"))}


class Run:
    """The workflow in a folder of its own.

    Args:
        arguments: of Snakemake, such as a target.
    """

    def __init__(self, folder: Path, config: dict, *arguments: str, cores: int = 1):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.results = folder, folder / "results" / config["name"]
        (folder / "experiment.yaml").write_text(yaml.safe_dump(config))
        self._command = [sys.executable, "-m", "snakemake", *arguments, "-s", str(ROOT / "Snakefile")]
        self._command += ["--directory", str(folder), "--cores", str(cores)]
        self._command += ["--configfile", str(folder / "experiment.yaml")]

    def begin(self, *arguments: str, output: str = "output.txt") -> subprocess.Popen:
        """Starts Snakemake; its output goes to a file of this name."""
        with (self.folder / output).open("w") as file:
            return subprocess.Popen([*self._command, *arguments], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)

    def finish(self, *arguments: str, output: str = "output.txt") -> tuple[int, str]:
        """Runs to the end; returns the exit status and the output."""
        status = self.begin(*arguments, output=output).wait()
        return status, (self.folder / output).read_text()

    def jobs(self) -> dict[int, str]:
        """Returns the processes of this folder's jobs, each with its rule: scripts, and forks of the warm process."""
        mine = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "cwd").resolve() == self.folder.resolve():
                    command = (process / "cmdline").read_bytes()
                    if script := re.search(rb"\.snakemake/scripts/\w+\.(\w+)\.py|sae\.warm", command):
                        mine[int(process.name)] = script[1].decode() if script[1] else "fork"
            except OSError:  # it has ended
                continue
        return mine

    def kill(self, victim: str, after: float, rng: random.Random) -> str | None:
        """Runs, and after some seconds kills Snakemake or a random job of it, at once or as soon as there is a job.

        Args:
            victim: snakemake or job.

        Returns:
            the rules that ran; None if the run had ended before.

        Raises:
            RuntimeError: a run that had ended before failed, or jobs outlived Snakemake.
        """
        snakemake, begun = self.begin(), time.monotonic()
        jobs: dict[int, str] = {}
        while time.monotonic() < begun + after or (victim == "job" and not jobs):
            if snakemake.poll() is not None:
                if snakemake.returncode:
                    raise RuntimeError((self.folder / "output.txt").read_text())
                return None
            time.sleep(0.1)
            jobs = self.jobs()
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(snakemake.pid if victim == "snakemake" else rng.choice(sorted(jobs)), signal.SIGKILL)
        status, begun = snakemake.wait(), time.monotonic()
        while left := self.jobs():
            if time.monotonic() > begun + 10:
                raise RuntimeError(f"these jobs go on: {left}")
            time.sleep(0.05)
        if status == 0:
            return None
        return " ".join(sorted({rule for rule in jobs.values() if rule != "fork"})) or "none"

    def recover(self, victim: str) -> None:
        """Does what docs/how-to/interrupted.md says before the same command runs again."""
        if victim == "snakemake":
            status, output = self.finish("--unlock")
            if status:
                raise RuntimeError(output)


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Returns the files of two `contents` that are not the same, or are in one of them only."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=20, help="seconds from a start to a kill, at most")
    arguments = parser.parse_args()
    rng, tally, faults = random.Random(arguments.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Run(Path(folder) / "undisturbed", CONFIG)
        status, output = undisturbed.finish()
        if status:
            raise RuntimeError(output)
        right, rounds = contents(undisturbed.results), 0
        while sum(tally.values()) < arguments.kills:
            rounds += 1
            run, rules = Run(Path(folder) / f"round-{rounds}", CONFIG), ""
            while rules is not None:
                victim = rng.choice(["snakemake", "job"])
                rules = run.kill(victim, rng.uniform(0, arguments.longest), rng)
                if rules is not None:
                    tally.update([victim])
                    print(f"kill {sum(tally.values())}: {victim}, while these ran: {rules}", flush=True)
                    run.recover(victim)
            wrong = differences(contents(run.results), right)
            faults += len(wrong)
            print(f"round {rounds}: complete, {len(right)} files, {len(wrong)} differ {wrong[:5]}", flush=True)
            shutil.rmtree(run.folder)
    print(f"{dict(tally)} killed in {rounds} rounds; {faults} files differ")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
