"""The configuration: each mistake is explained in one line that names the key, and each key is described once."""

import runpy
from itertools import pairwise

import pytest
import yaml
from conftest import ROOT

from sae.config import complete
from sae.errors import InputError

SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
EXPERIMENTS = [ROOT / "config.yaml", *sorted((ROOT / "experiments").glob("*.yaml"))]
LEAST = {"name": "x", "images": "concepts", "grid": {"layers": [1], "ks": [2]}}
# Names with which results would leave their folder, or a command would go wrong.
OUTSIDE = ("../x", "/tmp/x", "..", "x/../../y", "-x", "a b", "{layer}", "<b>", "")


def test_defaults_are_filled_in_and_the_given_is_kept():
    given = {**LEAST, "training": {"epochs": 3}}
    config = complete(given, SCHEMA)
    assert config["training"]["epochs"] == 3 and config["training"]["batch"] == 4096
    assert config["sae"]["expansion"] == 16 and config["grid"]["methods"] == ["topk"]
    assert given["training"] == {"epochs": 3}


def test_whole_numbers_may_be_written_with_a_point():
    config = complete({**LEAST, "shards": 2.0, "grid": {"layers": [1.0], "ks": [4.0, 8]}}, SCHEMA)
    assert repr([config["shards"], *config["grid"]["layers"], *config["grid"]["ks"]]) == "[2, 1, 4, 8]"


def test_text_that_can_only_be_a_number_is_one():
    """YAML reads 1e-3 as text; inside a section that --config gives, Snakemake leaves all values as text."""
    given = {"grid": {"layers": ["1"], "ks": ["4", "8"]}, "training": {"lr": "1e-3", "batch": "1e3", "clip": "null"}}
    config = complete({**LEAST, **given, "shards": "2", "held_out": ".3"}, SCHEMA)
    assert config["grid"]["layers"] == [1] and config["grid"]["ks"] == [4, 8]
    assert (config["training"]["lr"], config["training"]["batch"], config["training"]["clip"]) == (0.001, 1000, None)
    assert (config["shards"], config["held_out"]) == (2, 0.3)
    assert complete({**LEAST, "training": {"whole_images": "true"}}, SCHEMA)["training"]["whole_images"] is True


def test_models_may_be_named_as_their_hub_does():
    given = {"model": {"name": "timm/a"}, "evidence": {"embedding": {"name": "hf-hub:timm/b"}}}
    config = complete({**LEAST, **given}, SCHEMA)
    assert config["model"]["name"] == "a" and config["evidence"]["embedding"]["name"] == "b"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_is_valid_alone(path):
    text = path.read_text()
    complete(yaml.safe_load(text), SCHEMA)
    assert path.name == "config.yaml" or f"--configfile experiments/{path.name}\n" in text


def test_the_notebooks_experiment_is_exact():
    config = complete(yaml.safe_load((ROOT / "experiments/flickr2k.yaml").read_text()), SCHEMA)
    grid = {"layers": [6], "ks": [64], "methods": ["topk"], "seeds": [0]}
    assert {name: config["grid"][name] for name in grid} == grid
    assert config["sae"] == {"expansion": 16, "input": "layernorm", "decoder": "start"}
    assert config["tokens"] == "all"
    training = config["training"]
    assert (training["lr"], training["lr_per_epoch"], training["epochs"]) == (0.002, 0.7, 10)
    assert (training["batch"], training["whole_images"]) == (30, True)
    assert (training["betas"], training["precision"]) == ([0.9, 0.999], "fp32")
    assert (training["warmup"], training["decay"], training["clip"], training["auxk"]) == (0, 0, None, 0)


IMPORTED = {"layers": [1, 2], "ks": [1], "methods": ["imported"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainning": {}}, "trainning: there is no such key; did you mean training?"),
        ({"training": {"epoch": 3}}, r"training\.epoch: there is no such key; did you mean epochs?"),
        ({"epochs": 3}, r"did you mean training\.epochs?"),
        ({"zzz": 1}, "zzz: there is no such key; known here"),
        ({"training": {"epochs": "ten"}}, r"training\.epochs: 'ten' must be a whole number"),
        ({"training": {"lr": "fast"}}, r"training\.lr: 'fast' must be a number or null"),
        ({"training": {"lr": float("nan")}}, r"training\.lr: 'nan' must be a number or null"),
        ({"training": {"lr": "inf"}}, r"training\.lr: 'inf' must be a number or null"),
        ({"name": 2026}, "name: 2026 must be text"),
        ({"name": "x\n"}, r"name: 'x\\n' is not allowed"),
        ({"name": "x" * 101}, "is longer than 100 characters"),
        ({"training": {"epochs": 0}}, r"training\.epochs: 0 must be at least 1"),
        ({"training": None}, "training: None must be a section of keys"),
        ({"grid": {"layers": [], "ks": [1]}}, r"grid\.layers: \[\] needs at least 1 entry"),
        ({"grid": {"layers": [1, 1], "ks": [1]}}, "lists an entry twice"),
        ({"grid": {"layers": [-1], "ks": [1]}}, r"grid\.layers\.0: -1 must be at least 0"),
        ({"grid": {"layers": 3, "ks": [1]}}, r"grid\.layers: 3 must be a list"),
        ({"grid": {"layers": [1]}}, r"grid\.ks: is missing\. Numbers of active latents"),
        ({"tokens": "patch"}, "tokens: 'patch' must be one of patches, class, all"),
        ({"device": "gpu"}, "device: 'gpu' is not allowed. The device that .* `cuda:N`"),
        ({"name": "a/b"}, "name: 'a/b' is not allowed. Name of the experiment: letters"),
        *(({"name": name}, "config key name: .* is not allowed") for name in OUTSIDE),
        ({"imported": "a"}, r"imported: has no effect; add the method imported to grid\.methods"),
        ({"grid": IMPORTED}, "imported: is missing; the method imported needs the path of an SAE"),
        ({"grid": IMPORTED, "imported": "{depth}"}, r"imported: '\{depth\}' may hold \{layer\}, \{k\} and \{seed\}"),
        (
            {"grid": IMPORTED | {"ks": [1, 2]}, "imported": "{layer}"},
            r"several ks; write \{k\} into the path",
        ),
        ({"held_out": 1}, "held_out: 1 must be below 1"),
        ({"training": {"betas": [0.9]}}, r"training\.betas: \[0\.9\] needs at least 2 entries"),
    ],
)
def test_mistakes_are_explained_in_one_line(change, message):
    with pytest.raises(InputError, match=message) as caught:
        complete({**LEAST, **change}, SCHEMA)
    assert "\n" not in str(caught.value)


def test_every_key_is_described_in_the_schema_and_shown_in_the_docs():
    schema = yaml.safe_load(SCHEMA.read_text())

    def walk(rules, above=""):
        for key, rule in rules.get("properties", {}).items():
            assert rule.get("description", "").endswith("."), f"{above}{key}"
            walk(rule, f"{above}{key}.")

    walk(schema)
    page = (ROOT / "docs/config.md").read_text()
    tables = runpy.run_path(str(ROOT / "docs/tables.py"))
    assert page == tables["renewed"](page, schema), "run `uv run python docs/tables.py`"
    assert "| `training.dead_after` | 0.01 | Share of the run" in page and "| `grid.ks` | *required* |" in page


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_key_of_an_experiment_is_explained_above_it(path):
    for above, line in pairwise(path.read_text().splitlines()):
        if line and not line.lstrip().startswith("#") and not line.endswith(":"):
            assert above.lstrip().startswith("#"), f"{line.strip()}: no comment above it"
