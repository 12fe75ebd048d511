"""The workflow as a module of another: the Snakefile that the docs show, run, and its variants planned."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, forked

from sae.files import read_json

PAGE = (ROOT / "docs/how-to/other-workflows.md").read_text()
SNAKEFILE = re.search(r"```snakemake\n(.*?)```", PAGE, re.S)[1]
TINY = {"concepts": {"count": 60}, "sae": {"expansion": 1}, "training": {"epochs": 1, "batch": 256}}
SAE = "results/mine/sae/layer=3/k=4/method=topk/seed=0"
# A rule whose params have the names that `verify` looks for.
OTHER = """

rule other:
    output:
        "other-{x}",
    params:
        settings="mine",
        code=lambda wildcards: wildcards.x,
    shell:
        "touch {output}"
"""
NORMS = """
import sys
from safetensors.numpy import load_file
print(*(load_file(sys.argv[1])["W_dec"] ** 2).sum(1), sep="\\n")
"""


def outer(folder: Path, snakefile: str, **config: object) -> Path:
    """Writes a workflow that has this project in its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "Snakefile").write_text(snakefile)
    (folder / "settings.yaml").write_text(yaml.safe_dump(config))
    (folder / "norms.py").write_text(NORMS)
    (folder / "sae-vit").symlink_to(ROOT)
    return folder


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return forked(["--cores", "2", *arguments], folder, os.environ | environment)


def jobs(folder: Path, *arguments: str, **environment: str) -> dict[str, int]:
    done = run(folder, *arguments, "-n", "--quiet", "rules", **environment)
    assert done.returncode == 0, done.stderr
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.M)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A workflow after its run: the example of the docs, with few images, a prefix and a rule of its own more."""
    snakefile = SNAKEFILE.replace('config["sae"]\n', 'config["sae"]\n    prefix: "vit"\n').replace(
        '"results', '"vit/results'
    )
    given = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])["sae"]
    folder = outer(tmp_path_factory.mktemp("outer"), snakefile + OTHER, own=1, sae=given | TINY)
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_another_rule_goes_on_with_a_result(finished):
    norms = [float(line) for line in (finished / "norms.csv").read_text().split()]
    assert norms == pytest.approx([1] * 192, abs=1e-4)
    assert read_json(finished / "vit" / SAE / "sae.json")["provenance"]["rule"] == "sae_train"
    assert not (finished / "results").exists()
    done = run(finished)
    assert "Nothing to be done" in done.stdout + done.stderr


def test_below_a_prefix_another_experiment_is_found_and_an_sae_imported(finished, tmp_path):
    """Paths in the configuration start from the folder of the run, without the prefix."""
    point = "layer=3/k=4/method=topk/seed=0"
    files = [f"codes/{point}/codes.safetensors", f"evidence/{point}/summary.parquet", f"metrics/{point}.parquet"]
    files += [f"ranking/{point}/{name}.parquet" for name in ("latents", "images")]
    for name in ("manifest.parquet", "reference/reference.json", *files):  # planning asks for no more
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / name).touch()
    sae = f"{finished}/vit/results/mine/sae/layer={{layer}}/k={{k}}/method=topk/seed=0"
    grid = {"layers": [3], "ks": [4], "methods": ["imported"], "baselines": ["random"]}
    given = {"name": "theirs", "with": "../other", "imported": os.path.relpath(sae, tmp_path / "outer"), "grid": grid}
    snakefile = SNAKEFILE.replace('config["sae"]\n', 'config["sae"]\n    prefix: "vit"\n')
    planned = jobs(outer(tmp_path / "outer", snakefile, sae=given | TINY), "sae_compare")
    assert planned["sae_compare"] == planned["sae_imported"] == 1 and "sae_train" not in planned


def test_verify_and_report_work_with_the_rules_of_both(finished):
    done = run(finished, "sae_verify")
    assert re.search(r"vit/results/mine: all \d+ files are as they were", done.stderr), done.stdout + done.stderr
    assert "than now" not in done.stderr
    done = run(finished, "--report", "report.zip")
    assert done.returncode == 0, done.stderr


def test_a_module_plans_the_jobs_that_the_workflow_alone_would(tmp_path):
    """The default experiment too, whose settings are in a file; from another folder and as the outer default target."""
    snakefile = 'module sae:\n    snakefile: "sae-vit/Snakefile"\n    config: config\n\n\nuse rule * from sae\n'
    outer(tmp_path / "outer", snakefile)
    alone = jobs(ROOT, "--directory", str(tmp_path / "alone"))
    assert alone["all"] == 1
    assert jobs(tmp_path, "-s", "outer/Snakefile", "--directory", str(tmp_path / "work")) == alone


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda:7"}, "error: device cuda:7: this machine has"),
        ({"grid": {"layer": [1]}}, "error: config key grid.layer: there is no such key; did you mean layers?"),
    ],
)
def test_mistakes_are_one_line_before_the_first_job(tmp_path, settings, message):
    folder = outer(tmp_path / "outer", SNAKEFILE, sae={"name": "mine"} | TINY | settings)
    done = run(folder, "results/mine/images.parquet")
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "results").exists()


def test_a_release_needs_no_clone(tmp_path):
    """Rules and scripts come from a repository by its tag; here that lies on this machine."""
    repository = tmp_path / "hosted/us/sae-vit"
    shutil.copytree(ROOT / "workflow", repository / "workflow")
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(ROOT / name, repository)
    git = ["git", "-c", "user.name=us", "-c", "user.email=us@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"], ["tag", "v0.1.0"]):
        subprocess.run([*git, *command], cwd=repository, check=True)
    snakefile = SNAKEFILE.replace('"sae-vit/Snakefile"', 'github("us/sae-vit", path="Snakefile", tag="v0.1.0")')
    folder = outer(
        tmp_path / "outer",
        snakefile,
        sae={"name": "mine", "grid": {"layers": [3], "ks": [4], "methods": ["topk"]}} | TINY,
    )
    places = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{tmp_path}/hosted/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    (folder / "sae-vit").unlink()
    assert jobs(folder, **places)["sae_train"] == 1
