"""The pins in pyproject.toml, requirements.lock and the conda environment say the same, and suffice."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version

import yaml
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPENDENCIES, WORKFLOW = PROJECT["project"]["dependencies"], PROJECT["dependency-groups"]["workflow"]


def names(requirements):
    return {re.split(r"[\s<>=!~;\[]", r, maxsplit=1)[0].lower().replace("_", "-") for r in requirements}


def imported(folder):
    """Returns the distributions that the code of a folder imports."""
    modules = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module.split(".")[0])
    modules -= set(sys.stdlib_module_names) | {"sae", "triton"}  # which comes with torch where that supports CUDA
    owners = packages_distributions()
    return names(owners[m][0] for m in modules)


def test_the_three_files_agree():
    done = subprocess.run([sys.executable, ROOT / ".ci/pin.py", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_everything_imported_is_declared_and_everything_declared_is_used():
    # timm imports torchvision, and works with those versions alone that were made for its torch.
    assert imported("sae") | {"torchvision"} == names(DEPENDENCIES)
    assert imported("workflow/scripts") <= names(DEPENDENCIES + WORKFLOW)


def test_the_conda_environment_has_every_dependency_at_its_pin():
    environment = yaml.safe_load((ROOT / "workflow/envs/sae.yaml").read_text())
    packages = next(d for d in environment["dependencies"] if isinstance(d, dict))["pip"]
    assert names(packages) == names(DEPENDENCIES + WORKFLOW)
    assert set(packages) <= set(PROJECT["tool"]["uv"]["constraint-dependencies"])


def test_what_runs_here_is_what_is_pinned():
    pinned = PROJECT["tool"]["uv"]["constraint-dependencies"]
    for name in names(DEPENDENCIES + WORKFLOW):
        assert any(p.startswith(f"{name}=={version(name)}") for p in pinned), name


def test_no_file_names_a_package_registry():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not files:
        files = [p.relative_to(ROOT) for p in ROOT.glob("*.*")]
    host = re.compile(rb"https?://[^\s]*/(simple|packages)/")
    assert not [f for f in files if (ROOT / f).is_file() and host.search((ROOT / f).read_bytes())]
