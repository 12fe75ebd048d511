#!/usr/bin/env python3
"""Renews the pins: `uv run python .ci/pin.py` resolves the newest versions that pyproject.toml's bounds allow.

Writes requirements.lock (hashes, for pip), the exact versions in pyproject.toml's [tool.uv] constraint-dependencies
(for uv, which obeys them without a uv.lock) and workflow/envs/sae.yaml (for conda). `--check` changes nothing and
fails where they disagree.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT, LOCK, ENV = ROOT / "pyproject.toml", ROOT / "requirements.lock", ROOT / "workflow/envs/sae.yaml"
PINS = r"constraint-dependencies = \[.*?\n\]\n"  # at the end of pyproject.toml


def name_of(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def pins_of(lock: str) -> list[str]:
    """Returns the lock's `name==version ; marker` lines, without hashes."""
    lines = [line.rstrip(" \\") for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    return [re.sub(r" ; ", "; ", line) for line in lines]


def environment(pins: list[str], project: dict) -> str:
    direct = {name_of(r) for r in project["project"]["dependencies"] + project["dependency-groups"]["workflow"]}
    chosen = [pin for pin in pins if name_of(pin) in direct]
    lines = [
        "# Third-party packages of every rule; `sae` itself is found beside the Snakefile. Written by .ci/pin.py.",
        "# The packages come from PyPI: torchvision works only beside the torch build it was made for.",
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
        "dependencies:",
        "  - python=3.12",
        "  - pip",
        "  - pip:",
        *[f'      - "{pin}"' if ";" in pin else f"      - {pin}" for pin in chosen],
    ]
    return "\n".join(lines) + "\n"


def resolve() -> str:
    """Resolves the bounds alone, for every Python and platform: the present pins must not hold back the new ones."""
    bare = re.sub(PINS, "", PROJECT.read_text(), flags=re.S)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pyproject.toml").write_text(bare)
        command = [
            "uv",
            "pip",
            "compile",
            "--universal",
            "--generate-hashes",
            "--no-annotate",
            "--no-header",
            "--quiet",
        ]
        command += [word for group in ("workflow", "dev", "docs") for word in ("--group", group)]
        command += ["--python-version", "3.11", "--upgrade", "pyproject.toml"]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def written(lock: str) -> dict[Path, str]:
    pins, text = pins_of(lock), PROJECT.read_text()
    quoted = [f'"{pin}"' if '"' not in pin else f"'{pin}'" for pin in pins]
    block = "constraint-dependencies = [\n" + "".join(f"    {pin},\n" for pin in quoted) + "]\n"
    text = re.sub(PINS, "", text, flags=re.S)
    return {LOCK: lock, PROJECT: text + block, ENV: environment(pins, tomllib.loads(text))}


if __name__ == "__main__":
    check = "--check" in sys.argv
    wanted = written(LOCK.read_text() if check else resolve())
    stale = [path.name for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    if check:
        sys.exit(f"pins disagree: {', '.join(stale)}; run `uv run python .ci/pin.py`" if stale else 0)
    for path, text in wanted.items():
        path.write_text(text)
