"""What a release consists of. The wheel: the package alone, which works without the checkout and without Snakemake."""

import re
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser

import pytest
import yaml
from conftest import ROOT
from test_pins import DEPENDENCIES, PROJECT, names

USE = """
import importlib, pkgutil, sys
sys.path[:0] = sys.argv[1:]
sys.modules["snakemake"] = None  # an import of it fails

import sae
assert sae.__file__.startswith(sys.argv[1]), sae.__file__
for module in pkgutil.walk_packages(sae.__path__, "sae."):
    importlib.import_module(module.name)

import torch
from sae import vit
model = vit.load("vit_tiny_concepts")
images = torch.rand(8, 3, *model.patch_embed.img_size)
tokens = vit.read(model, images, 3)
dictionary = sae.train(tokens.flatten(0, 1), sae.TrainConfig(k=4, latents=96, batch=64))
with torch.inference_mode(), sae.splice(model, 3, dictionary):
    assert model(images).isfinite().all()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_it_holds_the_package_alone(wheel):
    metadata = f"sae_vit-{PROJECT['project']['version']}.dist-info"
    assert {name.split("/")[0] for name in wheel.namelist()} == {"sae", metadata}
    tracked = subprocess.run(["git", "ls-files", "sae"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert set(tracked.stdout.split()) <= set(wheel.namelist())
    required = Parser().parsestr(wheel.read(f"{metadata}/METADATA").decode()).get_all("Requires-Dist")
    assert names(required) == names(DEPENDENCIES)


def test_the_shipped_vit_works_from_it(wheel, tmp_path):
    wheel.extractall(tmp_path / "wheel")
    # Without `site`, no path to the checkout is added; the packages that it needs are those of this environment.
    command = [sys.executable, "-I", "-S", "-c", USE, str(tmp_path / "wheel"), sysconfig.get_path("purelib")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_changelog_citation_and_catalog_say_the_same():
    version, license = PROJECT["project"]["version"], PROJECT["project"]["license"]
    releases = re.findall(r"^## \[(.*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert releases[0] == "Unreleased" and releases[1:2] in ([], [version])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == license and citation["authors"] == [{"name": "The sae-vit developers"}]
    assert citation["abstract"] == PROJECT["project"]["description"] + "."
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    # test_conda runs with conda; test_workflow makes a report; the README's first command has no flags.
    assert usage["software-stack-deployment"]["conda"] and usage["report"] and not usage["mandatory-flags"]["flags"]
