"""Every example of the README and the docs runs: Python as it stands, Snakemake's commands as dry runs.

The site shows every page once, and every link leads somewhere. `.ci/site` builds it.
"""

import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from unittest.mock import create_autospec

import huggingface_hub
import numpy as np
import pytest
import small
import torch
import yaml
from conftest import ROOT, forked, picture
from matplotlib import pyplot
from safetensors.numpy import save_file

import sae
from sae import new_image
from sae import vit as vits
from sae.config import complete
from sae.latent_codes import Tally

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
POINT = "layer=6/k=32/method=topk/seed=0"
# They install packages, or need more than this machine has; test_pins and test_conda look at the same files.
EXEMPT = ("pip install ", "snakemake --cores 2 --use-conda", "uv run pytest", "uv run --group", "uv run --with jup")


def examples(text: str, language: str) -> list[tuple[int, str]]:
    """Returns line number and content of each block of a language."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def commands(path: Path) -> list[str]:
    """Returns the shell commands of a page, in blocks and in sentences."""
    text = path.read_text()
    lines = "".join(block for _number, block in examples(text, "sh")).splitlines()
    spans = re.findall(r"`((?:uv run|snakemake|pip install|[\w/]*benchmarks/\w+\.py) [^`]+)`", text)
    return [part.split("  #")[0].strip() for line in [*lines, *spans] for part in line.split(" && ")]


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs a command in a copy of the project; nothing is computed."""
    words = shlex.split(command)
    plugin = words[3] if words[:3] == ["uv", "run", "--with"] else None
    if words[:2] == ["uv", "run"]:
        words = words[4:] if plugin else words[2:]
    words = words[1:] if words[0] == "python" else words
    if words[0] == "snakemake":
        dry = [] if {"--report", "--unlock"} & {*words} else ["-n", "--quiet", "rules"]
        local = ["--executor", "local", "--cores", "2"] if plugin else []  # the plugin is not installed here
        plan = re.sub(r" (-n|--quiet rules)(?= |$)", "", " ".join(words[1:]))  # so that equal runs are made once
        plan = re.sub(r"(?<=--cores )\d+", "2", plan)
        words = ["-m", "snakemake", *dry, *shlex.split(plan), *local]
    return _run(tuple(words), folder)


@cache
def _run(words: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"HOME": str(folder / "home")}
    if words[:2] == ("-m", "snakemake"):
        return forked(words[2:], folder, environment)
    words = [sys.executable, *words]
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment, check=False)


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A folder that looks like the project's own, with the configuration files that pages show and a user's images."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("Snakefile", "config.yaml", "workflow", "profiles", "experiments", "sae", "benchmarks", "docs"):
        (folder / name).symlink_to(ROOT / name)
    for seed in range(4):
        picture(folder / "home/pictures/pets" / "ab"[seed % 2] / f"{seed}.png", seed=seed)
    (folder / "home/pictures/pets.csv").write_text("path,label,breed\na/0.png,cat,siamese\nb/1.png,dog,\n")
    save_file({"head.bias": np.zeros(2)}, folder / "home/finetuned.safetensors")
    (folder / "home/saes/layer-6").mkdir(parents=True)
    picture(folder / "cat.jpg")
    for path in (  # of an experiment to compare with
        *("manifest.parquet", "reference/reference.json", f"metrics/{POINT}.parquet"),
        *(f"codes/{POINT}/codes.safetensors", f"evidence/{POINT}/summary.parquet"),
        *(f"ranking/{POINT}/{name}.parquet" for name in ("latents", "images")),
    ):
        (folder / "results/other" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "results/other" / path).touch()
    for path in PAGES:
        for number, block in examples(path.read_text(), "yaml"):
            name = re.match(r"# (\w+\.yaml)\n", block)
            assert name, f"{path.name}:{number}: the first line must name the file: # mine.yaml"
            file = folder / name[1]
            assert not file.exists() or file.read_text() == block, f"{path.name}:{number}: {name[1]} has other content"
            file.write_text(block)
    return folder


def configurations() -> list[tuple[str, dict]]:
    """Returns each block of YAML, laid over config.yaml if it has no images of its own."""
    default = yaml.safe_load((ROOT / "config.yaml").read_text())
    blocks = [(f"{path.name}:{n}", yaml.safe_load(b)) for path in PAGES for n, b in examples(path.read_text(), "yaml")]
    # In a workflow that uses this one as a module, the configuration is a section.
    given = [(place, block["sae"] if "name" in block.get("sae", {}) else block) for place, block in blocks]
    return [(place, block if "images" in block else default | block) for place, block in given]


@pytest.mark.parametrize(
    ("place", "given"), configurations(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_configuration_is_valid(place, given):
    complete(given, ROOT / "workflow/schemas/config.schema.yaml")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_is_understood(path, project):
    for command in commands(path):
        if command.startswith(EXEMPT):
            continue
        if benchmark := re.search(r"benchmarks/\w+\.py", command):  # it takes minutes, and its imports alone seconds
            code = (project / benchmark[0]).read_text()
            unknown = [word for word in command.split() if word.startswith("--") and f'"{word}"' not in code]
            assert not unknown, f"{path.name}: {command}"
            continue
        done = run(command, project)
        # A report needs a finished run: to miss its first figure is as far as this command gets here.
        missing = "--report" in command and "marked for report but does not exist" in done.stderr
        assert done.returncode == 0 or missing, f"{path.name}: {command}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """A folder with an SAE, codes and pictures where the pages look for them."""
    folder, rng = tmp_path_factory.mktemp("results"), np.random.default_rng(0)
    x = rng.standard_normal((5000, 192), np.float32)
    model = sae.train(x, sae.TrainConfig(k=32, latents=64), source=sae.Source(layer=6))
    model.save(folder / "results/pets/sae" / POINT)
    z = model.encode(x[: 3 * 196]).reshape(3, 196, 64)
    codes = small.coded(z, [2, 5, 7], error=np.ones(1), tally=Tally.empty(64, 196))
    codes.save(folder / "results/pets/codes" / POINT, {})
    picture(folder / "pictures/cat.jpg")
    return folder


def execute(path: Path) -> dict:
    """Runs the Python of a page from top to bottom in one namespace, with the names that the page takes as given."""
    torch.manual_seed(0)
    names = {"x": np.random.default_rng(0).standard_normal((4500, 192), np.float32)}
    names |= {"vit": vits.load("vit_tiny_patch16_224", "random"), "images": torch.zeros(2, 3, 224, 224)}
    for number, block in examples(path.read_text(), "python"):
        exec(compile("\n" * (number - 1) + block, path, "exec"), names)
    return names


@pytest.mark.parametrize(
    "path", [path for path in PAGES if examples(path.read_text(), "python")], ids=lambda path: path.name
)
def test_the_python_of_every_page_runs(path, results, monkeypatch):
    monkeypatch.chdir(results)
    pyplot.switch_backend("agg")
    # A network and a finished run are not here: these two only check their arguments.
    monkeypatch.setattr(huggingface_hub, "HfApi", create_autospec(huggingface_hub.HfApi))
    monkeypatch.setattr(new_image, "look", create_autospec(new_image.look))
    names = execute(path)
    if path.name == "README.md":
        assert names["z"].shape == (4500, 64) and names["x_hat"].shape == (4500, 192)
        assert names["logits"].shape == (2, 1000)
    elif path.name == "data.md":
        patches = names["patches"]
        assert patches.shape == (14, 14) and patches.max() == names["strongest"].max() > 0
        assert names["z"].shape == (196, 64)
    elif path.name == "activations.md":
        assert names["x"].shape == (1, 50, 192)
    elif path.name == "tour.md":  # the numbers differ by a little on other processors
        assert min(names["untouched"], *names["controls"]) > 0.8 and names["ablated"] < 0.3
        assert names["steered"] > 0.7 > 0.1 > names["before"] and names["auroc"] > 0.95


def test_the_tour_and_its_notebook_are_the_same():
    cells = runpy.run_path(str(DOCS / "tour.py"))["cells"](DOCS / "tour.ipynb")
    page = re.sub(r"^```text\n.*?^```\n\n|^!\[[^\n]*\n\n", "", (DOCS / "tour.md").read_text(), flags=re.M | re.S)
    parts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells]
    assert page == "\n\n".join(parts) + "\n", "run `uv run python docs/tour.py`"


def test_a_broken_example_is_noticed(project, results, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nimport sae\nsae.trian(x)\n```\n`uv run snakemake --cores 1 no_such_target`\n")
    with pytest.raises(AttributeError, match="trian"):
        execute(page)
    (command,) = commands(page)
    done = run(command, project)
    assert done.returncode != 0 and "no_such_target" in done.stdout + done.stderr


def test_every_link_leads_somewhere():
    for path in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            if target.startswith("https://"):
                continue
            file, _, anchor = target.partition("#")
            page = path.parent / file if file else path
            assert page.exists(), f"{path.name}: {target}"
            inside = page.resolve().is_relative_to(DOCS)
            assert inside or not path.is_relative_to(DOCS), f"{path.name}: {target} is not a part of the site"
            titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M) if anchor else []
            anchors = [re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles]
            anchors += re.findall(r"^::: ([\w.]+)$", page.read_text(), re.M) if anchor else []
            assert not anchor or anchor in anchors, f"{path.name}: {target}"


def listed(nav: list | dict | str) -> list[str]:
    """Returns the pages of the site's navigation."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in listed(entry)]


def test_the_navigation_lists_every_page_once():
    pages = listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(pages) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_reference_has_every_public_name():
    shown = re.findall(r"^::: sae\.(\w+)$", (DOCS / "python.md").read_text(), re.M)
    assert sorted(shown) == sae.__all__
