"""Receipts: each output of a job has one, with the checksums of its files and what made it.

The receipt of `results/NAME/PATH` is `results/NAME/receipts/PATH.json`. A job compares its inputs with their receipts
before it starts, and `report` compares all files of an experiment. Checkpoints have no receipt: they carry a checksum.
"""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sae.errors import InputError
from sae.files import check, damaged, read_json, sha256, trusted, write_json

_STAMP = ".snakemake_timestamp"  # Snakemake leaves it in each folder that is an output
_NOT_COMPARED = ("logs", "receipts", "checkpoints")


def compared(inputs: Iterable[str], results: Path | None) -> dict[str, str]:
    """Compares the inputs of a job with their receipts, and returns the SHA-256 of each input that is a file.

    From then on readers trust the files that have a receipt.

    Args:
        inputs: files and folders; those without a receipt are taken as they are.
        results: the experiment's folder, results/NAME; None: there are no receipts.

    Raises:
        InputError: a file is damaged.
    """
    found: dict[str, str] = {}
    for path in map(Path, inputs):
        receipt = _receipt(path, results)
        known = read_json(receipt)["files"] if receipt and receipt.is_file() else {}
        for file in _files(path):
            digest = sha256(file)
            name = file.relative_to(path).as_posix()
            if name in known:
                if digest != known[name]:
                    raise damaged(file)
                trusted.add(file)
            if file == path:
                found[str(path)] = digest
    return found


def write_receipts(outputs: Iterable[str], results: Path | None, facts: Mapping[str, Any]) -> None:
    """Writes the receipt of each output, a file or a folder: `facts`, and the SHA-256 of its files by their names.

    Args:
        outputs: files and folders.
        results: see `compared`.
        facts: about the job.
    """
    for path in map(Path, outputs if results else ()):
        files = {file.relative_to(path).as_posix(): sha256(file) for file in _files(path)}
        receipt = _receipt(path, results)
        if receipt:
            write_json(receipt, {"files": files, **facts})


def code_and_weights(rules: Iterable[Any]) -> dict[str, dict[str, str]]:
    """Returns the `code` and `weights` among the params of Snakemake's rules, by the name of the rule.

    Rules of a workflow that uses this one as a module have no `settings` with a `code`, and are left out.
    """
    found = {}
    for rule in rules:
        params = dict(rule.params.items())
        settings = params.get("settings")
        if not isinstance(settings, dict) or "code" not in settings:
            continue
        values = {name: value for name, value in (params | settings).items() if name in ("code", "weights")}
        found[rule.name] = {name: value({}) if callable(value) else value for name, value in values.items()}
    return found


def options(snakefile: Path, folder: Path, configs: Sequence[Path], conda: bool) -> str:
    """Returns the options with which Snakemake finds this workflow, its folder and its configuration files again.

    Args:
        snakefile: of the workflow.
        folder: in which the workflow runs.
        configs: the configuration files that the user gave.
        conda: whether conda installs the packages.
    """
    words = [] if snakefile == folder / "Snakefile" else ["-s", snakefile, "--directory", folder]
    words += ["--use-conda"] * conda
    words += ["--configfile", *configs] if configs else []
    return shlex.join(map(str, words))


def report(
    results: Path,
    options: str,
    now: Mapping[str, Mapping[str, str]],
    versions: Mapping[str, str | None],
    threads: int = 1,
) -> None:
    """Compares all files of an experiment with their receipts, and prints what is damaged and what others made.

    Args:
        results: the experiment's folder, results/NAME.
        options: of Snakemake, see `options`.
        now: see `code_and_weights`.
        versions: of the packages, now.
        threads: files that are read at once.

    Raises:
        InputError: a file is damaged or missing, or there are no receipts.
    """
    receipts = sorted((results / "receipts").rglob("*.json"))
    if not receipts:
        raise InputError(f"{results}/receipts: there are no receipts to compare with; run the workflow first")
    problems: list[tuple[str, Path, Path]] = []  # when it was made, the file, the output to make anew
    expected: dict[Path, tuple[str, Path, str]] = {}
    others: dict[str, list[str]] = defaultdict(list)  # what differs from now -> a rule for each output
    for receipt in receipts:
        artefact = results / receipt.relative_to(results / "receipts").with_suffix("")
        try:
            facts = read_json(receipt)
        except InputError:
            problems.append(("", receipt, artefact))
            continue
        expected |= {artefact / name: (facts["started"], artefact, digest) for name, digest in facts["files"].items()}
        for difference in _differences(facts, now, versions):
            others[difference].append(facts["rule"])

    with ThreadPoolExecutor(threads) as pool:
        digests = pool.map(lambda path: path.is_file() and sha256(path), expected)
        for path, digest in zip(expected, digests, strict=True):
            started, artefact, known = expected[path]
            if digest != known:
                problems.append((started, path, artefact))
    for _started, path, artefact in sorted(problems):  # the first that was made comes first: others are made from it
        state = "is damaged" if path.exists() else "is missing"
        print(f"{path} {state}; make it anew: {_again(artefact, options)}", file=sys.stderr)

    checkpoints = sorted((results / "checkpoints").rglob("*.safetensors"))
    for path in checkpoints:
        try:
            check(path)
        except InputError:
            problems.append(("", path, path))
            target = results / "sae" / path.relative_to(results / "checkpoints").with_suffix("") / "sae.safetensors"
            command = f"rm {path} && {_again(target, options)}"
            print(f"{path} is damaged; begin this training again: {command}", file=sys.stderr)

    for difference, made in sorted(others.items()):
        rules = ", ".join(sorted(set(made)))
        print(f"made by {difference}: {len(made)} of {len(receipts)} outputs, of the rules {rules}", file=sys.stderr)
    rest = sorted(set(_files(results)) - expected.keys())
    rest = [path for path in rest if path.relative_to(results).parts[0] not in _NOT_COMPARED]
    if rest:
        print(f"without a receipt, so not compared: {len(rest)} files, such as {rest[0]}", file=sys.stderr)
    total = len(expected) + len(checkpoints)
    if problems:
        count = f"{len(problems)} of {total} files are" if len(problems) > 1 else f"1 of {total} files is"
        raise InputError(
            f"{results}: {count} damaged or missing; the lines above name the commands that make them anew"
        )
    print(f"{results}: all {total} files are as they were written", file=sys.stderr)


def _again(path: Path, options: str) -> str:
    return f"snakemake --cores 1 --force {shlex.quote(str(path))} {options}".rstrip()


def _differences(
    facts: Mapping[str, Any], now: Mapping[str, Mapping[str, str]], versions: Mapping[str, str | None]
) -> list[str]:
    """Returns in words how the code, weights and versions that made an output differ from now."""
    then, packages = facts | facts["settings"], facts["versions"]
    here = now.get(facts["rule"], {})
    found = [f"other {name} than now" for name in here if name in then and then[name] != here[name]]
    known = sorted(packages.keys() & versions.keys())
    return found + [
        f"{name} {packages[name]}, now {versions[name]}" for name in known if packages[name] != versions[name]
    ]


def _receipt(path: Path, results: Path | None) -> Path | None:
    """Returns the path of an output's receipt; None for a file that is not of this experiment, or without receipts."""
    if results is None or not path.is_relative_to(results):
        return None
    return results / "receipts" / f"{path.relative_to(results)}.json"


def _files(path: Path) -> list[Path]:
    """Returns a file itself, or all files of a folder."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != _STAMP)
