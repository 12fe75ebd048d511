"""The workflow as a user runs it: one small experiment, whole, and what a change of the config makes it do again."""

import re
import shutil
import zipfile
from pathlib import Path

import conftest
import contract
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import snakemake
from huggingface_hub import ModelCard
from PIL import Image

import sae
import sae.concepts
from sae import vit
from sae.evidence import one_factor
from sae.files import read_json, read_provenance, sha256

CONFIG = {
    "name": "small",
    "concepts": {"count": 100},
    "grid": {"layers": [3], "ks": [2, 4], "methods": ["topk"], "baselines": ["pca"]},
    "sae": {"expansion": 1},
    "training": {"epochs": 4, "batch": 256},
    "ranking": {"support": 4},
    "evidence": {"latents": 4, "images": 2},
    "report": {"latents": 4, "images": 4},
}
POINT = "layer=3/k=4/method=topk/seed=0"


# Python runs this file at its start in every job. From then on each encoder product of the job is noted in a file, and
# at its end every file below results/ that it opened to read, but that its rule does not declare; receipts aside.
COUNT = """
import atexit, importlib.util, os, sys
from importlib.abc import MetaPathFinder

class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "sae.autoencoder":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            product = module.SparseAutoencoder.pre_activations

            def counted(self, target):
                import hashlib
                script = os.path.basename(sys.argv[0]).split(".", 1)[1].removesuffix(".py")
                one = hashlib.sha256(self.W_dec.detach().numpy().tobytes()).hexdigest()[:16]
                with open(os.environ["COUNT_FILE"], "a") as file:
                    print(script, self.config.method, self.config.k, one, len(target), file=file)
                return product(self, target)

            module.SparseAutoencoder.pre_activations = counted

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
opened = set()

def note(event, arguments):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        with open(os.environ["COUNT_FILE"] + ".network", "a") as file:
            print(sys.argv[0], event, *arguments[1:], file=file)
    path, mode = (*map(str, arguments[:2]), "")[:2] if event == "open" else ("", "")
    if "results/" in path and "w" not in mode:
        opened.add("results/" + path.split("results/", 1)[1])

def report():
    job = getattr(sys.modules["__main__"], "snakemake", None)
    if job is None or not hasattr(job, "rule"):
        return
    declared = [*map(str, job.input), *map(str, job.output), *map(str, job.log), job.params.get("checkpoint", "")]
    declared = [path for path in declared if path]
    for path in opened:
        if "part" in path or "/receipts/" in path:
            continue
        if not any(path == d or path.startswith(d + "/") for d in declared):
            with open(os.environ["COUNT_FILE"] + ".undeclared", "a") as file:
                print(job.rule, path, file=file)

sys.addaudithook(note)
atexit.register(report)
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A working directory after a run of the small experiment; its encoded.txt counts the encoded tokens."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "counting").mkdir()
    (folder / "counting/sitecustomize.py").write_text(COUNT)
    environment = {"PYTHONPATH": str(folder / "counting"), "COUNT_FILE": str(folder / "encoded.txt")}
    done = snakemake(folder, config=CONFIG, **environment, HF_HUB_OFFLINE="0")  # as a user's is
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_look_at_a_new_image_adds_a_page_and_touches_nothing_else(finished, tmp_path):
    results, image = finished / "results/small", finished / "a red {dot}.png"
    pixels = np.full((90, 120, 3), 110, np.uint8)
    pixels[30:60, 40:80] = 220, 20, 20
    Image.fromarray(pixels).save(image)

    def others():
        apart = {"look", "logs", "receipts"}
        found = (path for path in results.rglob("*") if path.is_file() and not apart & {*path.parts})
        return {path: sha256(path) for path in found}

    before = others()
    done = snakemake(finished, "look", config=CONFIG | {"image": image.name})
    assert done.returncode == 0, done.stdout + done.stderr
    page = results / "look/a-red-dot-.html"
    assert others() == before
    text = page.read_text()
    assert "&lt;" not in text and "a red {dot}.png" in text and text.count("data:image/webp") == 1 + 2 * (8 + 6)
    model = vit.load("vit_tiny_concepts")
    shown = vit.pixel_transform(model)(Image.fromarray(pixels)).transpose(1, 2, 0)
    tokens = vit.read(model, vit.normalise(model)(shown[None]), 3)[0, 1:].half().float()
    strongest = sae.load(results / "sae" / POINT).encode(tokens).amax(0).argsort(descending=True)[:8].tolist()
    links = re.findall(r"explorer/index.html#layer=3&amp;k=4&amp;method=topk&amp;seed=0&amp;latent=(\d+)", text)
    assert [int(latent) for latent in links] == strongest
    assert (page.parent / "../explorer/index.html").resolve().exists()
    assert sae.look(image, results, out=tmp_path / "same.html").read_text() == text

    nothing = snakemake(finished, "look", config=CONFIG)
    assert nothing.returncode == 1 and "error: look needs an image" in nothing.stderr + nothing.stdout
    missing = snakemake(finished, "look", config=CONFIG | {"image": "no.png"})
    assert missing.returncode == 1 and "error: image no.png: no such file" in missing.stderr + missing.stdout
    (finished / "text.png").write_text("text")
    with pytest.raises(sae.InputError, match=r"text\.png: cannot be read as an image"):
        sae.look(finished / "text.png", results)
    with pytest.raises(sae.InputError, match="no finished run"):
        sae.look(image, tmp_path)


def test_another_experiment_is_compared_and_stays_as_it_is(finished):
    """A ViT with random weights on the same images, one layer and no baseline: enough to be compared."""
    grid = {"layers": [2], "ks": [2], "methods": ["topk"], "seeds": [1], "baselines": []}
    other = changed(name="other", grid=grid, model={"checkpoint": "random"}, training={"epochs": 1})
    point = "layer=2/k=2/method=topk/seed=1"
    wanted = f"results/other/evidence/{point}/summary.parquet"
    own, config = finished / "results/small", CONFIG | {"with": "results/other"}

    def refused(told, **parts):
        done = snakemake(finished, "compare", config=CONFIG | parts)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error:")]
        assert done.returncode != 0 and len(lines) == 1 and told in lines[0], done.stderr

    refused("compare needs another experiment's results: snakemake --cores 1 compare --config with=results/other")
    refused("with results/other: no such folder", **config)
    refused("with results/../results/small: this is the experiment itself", **{"with": "results/../results/small"})
    done = snakemake(finished, "results/other/manifest.parquet", config=other)
    assert done.returncode == 0, done.stderr
    refused("results/other/reference/reference.json is missing; finish its run first", **config)
    assert snakemake(finished, wanted, config=other).returncode == 0

    before = {path: sha256(path) for path in finished.rglob("results/other/**/*") if path.is_file()}
    explorer = {path: sha256(path) for path in (own / "explorer").rglob("*") if path.is_file()}
    environment = {"PYTHONPATH": str(finished / "counting"), "COUNT_FILE": str(finished / "encoded.txt")}
    done = snakemake(finished, "compare", config=config, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^compare +1$", done.stdout + done.stderr, re.M)
    assert {path: sha256(path) for path in before} == before
    assert {path: sha256(path) for path in explorer} == explorer  # only data/compare is new

    made = ["report/compare.html", "report/compare.csv", "report/compare.svg", "report/compare.png"]
    made += [
        "matches/compare.parquet",
        *(f"explorer/data/compare/{p}.js" for p in (POINT, POINT.replace("k=4", "k=2"))),
    ]
    bytes_of = {name: (own / name).read_bytes() for name in made}
    matches = pd.read_parquet(own / "matches/compare.parquet")
    assert matches.groupby(["of", "layer", "k", "seed"]).size().to_dict() == {
        ("other", 2, 2, 1): 2 * 192, ("this", 3, 2, 0): 192, ("this", 3, 4, 0): 192,
    }  # fmt: skip
    ids = pd.read_parquet(own / "manifest.parquet")["id"]  # all: too few are held out
    here, there = (
        sae.codes(finished / "results" / name / "codes" / p) for name, p in (("small", POINT), ("other", point))
    )
    mine = matches[(matches["of"] == "this") & (matches["k"] == 4) & matches["fires"]]
    for row in mine.sort_values("r").tail(5).itertuples():
        strongest = [c.of(ids).images[:, [f]].toarray()[:, 0] for c, f in ((here, row.latent), (there, row.match))]
        assert np.corrcoef(*strongest)[0, 1] == pytest.approx(row.r, abs=1e-5)
    text = (own / "report/compare.html").read_text()
    assert "on 100 images that are in both experiments, train images among them" in text
    assert "random weights" in text and "../../other/explorer" not in text  # it has no explorer yet

    again = planned(finished, "compare", config=config)
    assert again == {}
    for name in made:
        (own / name).unlink()
    (finished / "results/other/explorer").mkdir()
    (finished / "results/other/explorer/index.html").touch()
    assert snakemake(finished, "compare", config=config).returncode == 0
    linked = {"report/compare.html", *(name for name in made if "explorer" in name)}
    assert all((own / name).read_bytes() == bytes_of[name] for name in made if name not in linked)
    assert all(b"../../other/explorer/" in (own / name).read_bytes() for name in linked)
    table = pd.read_parquet(finished / wanted)
    table.assign(value=0.5).to_parquet(finished / wanted)  # a change over there
    assert planned(finished, "compare", config=config) == {"compare": 1}


def test_every_file_that_a_job_reads_is_an_input_of_its_rule(finished):
    undeclared = finished / "encoded.txt.undeclared"
    assert not undeclared.exists(), undeclared.read_text()


def test_no_job_asks_for_the_network(finished):
    asked = finished / "encoded.txt.network"
    assert not asked.exists(), asked.read_text()


def test_every_token_meets_every_dictionary_once(finished):
    names = ["script", "method", "k", "dictionary", "rows"]
    encoded = pd.read_csv(finished / "encoded.txt", sep=" ", names=names)
    encoded = encoded[~encoded["script"].isin(["train", "baselines"])]  # there dictionaries are made
    assert set(encoded["script"]) == {"measure", "measure_second_seed"}
    rows = encoded.groupby(["script", "method", "k", "dictionary"])["rows"].sum()
    held_out = len(read_json(finished / "results/small/reference/reference.json")["ids"])
    # PCA is the same with every seed: only the SAEs have a second one.
    pairs = (1 + len(sae.concepts.FACTORS)) * one_factor.PAIRS  # more images, which the results do not hold
    assert rows["measure"].tolist() == [(100 + pairs) * 49] * 4
    assert rows["measure_second_seed"].tolist() == [held_out * 49] * 2


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """The same for a test that changes it."""
    folder = tmp_path / "work"
    shutil.copytree(finished, folder, symlinks=True)  # keeps times: Snakemake sees nothing new
    return folder


def planned(folder: Path, *arguments: str, config: dict = CONFIG) -> dict[str, int]:
    return conftest.planned(folder, *arguments, config=config)


def changed(**parts) -> dict:
    return {
        key: {**value, **parts.pop(key, {})} if isinstance(value, dict) else value for key, value in CONFIG.items()
    } | parts


def test_all_results_are_made(finished):
    """What `rule all` names, and what lies in the folders that jobs make."""
    r = finished / "results/small"
    for path in (
        *("explorer/index.html", "explorer/app/vega.js", "explorer/pictures/0.webp"),
        *(f"explorer/data/{POINT}/{name}.js" for name in ("table", "latents/0000", "images/0000")),
        *(f"report/{name}" for name in ("conclusion.html", "conclusion.csv", "conclusion.svg", "grid_points.csv")),
        *(f"report/{name}" for name in ("layers.svg", "layers.csv", "other_ks.svg", "overview.svg")),
        *(f"report/layer=3/{name}.svg" for name in ("across-ks-topk-0", "statistics")),
        *(f"report/{POINT}/{name}.svg" for name in ("latents", "classes", "density", "training")),
        *(f"report/{POINT}/{name}.svg" for name in ("stability", "probes", "interventions", "monosemanticity")),
    ):
        assert (r / path).stat().st_size > 0, path
    assert not list(r.rglob("*.part*"))
    assert not list(r.glob("checkpoints/**/*.safetensors"))


def test_every_file_is_as_the_page_describes_it(finished):
    assert contract.problems(finished / "results/small") == []


def test_weights_that_give_no_numbers_are_one_line_with_layer_and_image(copy):
    model = vit.load("vit_tiny_concepts")
    model.blocks[2].mlp.fc2.bias[5] = float("nan")
    torch.save(model.state_dict(), copy / "nan.pth")
    shard = "results/small/activations/layer=3/shard=0000.npy"
    done = snakemake(copy, shard, config=CONFIG | {"model": {"checkpoint": str(copy / "nan.pth")}})
    found = r"^error: layer 3, activations: image \d+\.png gives nan, .*; check the model's weights$"
    assert done.returncode != 0 and re.search(found, done.stderr, re.M) and "Traceback" not in done.stderr


def test_a_second_run_has_nothing_to_do(finished):
    done = snakemake(finished, config=CONFIG, PYTHONHASHSEED="7")  # in no set's order
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


def test_an_added_k_computes_that_k_only(copy):
    jobs = planned(copy, config=changed(grid={"ks": [2, 4, 8]}))
    assert jobs == {
        "train": 2, "baselines": 1,
        "measure": 1, "measure_second_seed": 1, "measure_baselines": 1,
        "evidence": 1, "evidence_baselines": 1, "across_ks": 1, "across_ks_figure": 1,
        "layers_table": 1, "layers_figure": 1, "other_ks_figure": 1, "conclusion": 1, "evidence_figures": 1,
        "latents_figure": 1, "classes_figure": 1, "density_figure": 1, "training_figure": 1,
        # The other points' latents get relatives at the new k.
        "explorer_point": 3, "explorer": 1,
    }  # fmt: skip


def test_an_added_method_or_seed_encodes_nothing_again(copy):
    jobs = planned(copy, config=changed(grid={"methods": ["topk", "jumprelu"]}))
    assert {name: n for name, n in jobs.items() if name.startswith(("train", "measure", "baselines"))} == {
        "train": 4, "measure": 2, "measure_second_seed": 2, "training_figure": 2,
    }  # fmt: skip
    assert jobs["evidence"] == 2 and not {"extract", "statistics", "layer", "evidence_baselines"} & set(jobs)
    # The SAEs of the seed that served comparison are there already; only now is it measured in full.
    jobs = planned(copy, config=changed(grid={"seeds": [0, 1]}))
    assert jobs["measure"] == 2 and jobs["measure_baselines"] == 2 and "train" not in jobs
    jobs = planned(copy, config=changed(grid={"seeds": [0, 2]}))
    assert jobs["train"] == 2 and jobs["measure"] == 2 and "measure_second_seed" not in jobs
    assert not {"extract", "statistics", "layer"} & set(jobs)


def test_another_method_and_seed_run_to_the_report(copy):
    config = changed(grid={"ks": [4], "methods": ["topk", "jumprelu"], "seeds": [0, 1]})
    point = "layer=3/k=4/method={}/seed={}"
    wanted = [f"results/small/sae/{point.format('topk', 1)}/sae.safetensors"]
    wanted += [f"results/small/{part}/{point.format('jumprelu', 1)}.parquet" for part in ("metrics", "other_ks")]
    wanted += [f"results/small/ranking/{point.format('jumprelu', 1)}/latents.parquet"]
    wanted += [f"results/small/report/{point.format('pca', 0)}/probes.svg"]
    done = snakemake(copy, *wanted, config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (copy / f"results/small/sae/{point.format('topk', s)}/sae.safetensors" for s in (0, 1))
    assert sha256(first) != sha256(second)
    row = pd.read_parquet(copy / wanted[1]).iloc[0]
    assert row["seed"] == 1 and row["fvu"] < 1
    assert sae.load(copy / "results/small/sae" / point.format("jumprelu", 1)).config.method == "jumprelu"


def test_an_added_layer_extracts_that_layer_only(copy):
    jobs = planned(copy, config=changed(grid={"layers": [3, 5]}))
    assert jobs["extract"] == 1 and jobs["statistics"] == 1 and jobs["layer"] == 1 and jobs["directions"] == 1
    assert jobs["train"] == 4 and jobs["measure"] == 2 and jobs["measure_baselines"] == 2 and jobs["evidence"] == 2
    assert not {"manifest", "pixels", "reference", "concepts"} & set(jobs)


def test_a_setting_reruns_what_depends_on_it(copy):
    assert set(planned(copy, config=changed(report={"images": 5}))) == {"latents_figure", "classes_figure"}
    jobs = planned(copy, config=changed(training={"epochs": 5}))
    assert jobs["train"] == 4 and not {"extract", "layer", "baselines", "measure_baselines"} & set(jobs)
    jobs = planned(copy, config=changed(ranking={"images": 5}))
    assert jobs["evidence"] == 2 and not {"train", "measure", "layer"} & set(jobs)
    jobs = planned(copy, config=changed(tokens="all"))
    assert jobs["statistics"] == 1 and jobs["train"] == 4 and "extract" not in jobs


def test_exchanged_settings_are_noticed(copy):
    assert planned(copy, config=changed(training={"warmup": 0.2, "decay": 0.05}))["train"] == 4


def test_a_single_figure_regenerates_alone(copy):
    figure = copy / "results/small/report/layers.svg"
    before = figure.read_bytes()
    figure.unlink()
    done = snakemake(copy, "results/small/report/layers.svg", config=CONFIG)
    assert done.returncode == 0
    assert re.search(r"^total +1$", done.stdout + done.stderr, re.M)
    assert figure.read_bytes() == before
    (copy / f"results/small/report/{POINT}/latents.svg").unlink()
    assert planned(copy, f"results/small/report/{POINT}/latents.svg") == {"latents_figure": 1}


def test_the_same_config_gives_the_same_bytes(finished, copy):
    weights = f"results/small/sae/{POINT}/sae.safetensors"
    (copy / weights).unlink()
    done = snakemake(copy, weights, f"results/small/metrics/{POINT}.parquet", config=CONFIG)
    assert done.returncode == 0, done.stderr
    made = 0
    for path in filter(Path.is_file, (finished / "results/small").rglob("*")):
        name = path.relative_to(finished)
        made += (copy / name).stat().st_mtime_ns != path.stat().st_mtime_ns
        if name.parts[2] not in ("logs", "receipts"):  # they hold times
            assert sha256(copy / name) == sha256(path), name
    assert made >= 7  # SAE, its facts and log, codes, responses, metrics, metrics at other k


def test_the_results_hang_together(finished):
    r = finished / "results/small"
    manifest = pd.read_parquet(r / "manifest.parquet")
    assert len(manifest) == 100 and (manifest["status"] == "ok").all()
    m = sae.load(r / "sae" / POINT)
    assert m.config.latents == 192 and m.config.k == 4 and m.config.layer == 3

    images = pd.read_parquet(r / f"ranking/{POINT}/images.parquet")
    facts = read_json(r / "activations/layer=3/shard=0000.json")
    stored = np.load(r / "activations/layer=3/shard=0000.npy")
    for row in images.sample(20, random_state=0).itertuples():
        tokens = stored[facts["ids"].index(row.image_id)].astype(np.float32)
        z = m.encode(tokens[1:])[:, row.latent]
        assert z.max() == pytest.approx(row.activation, rel=1e-4)
        assert z[row.token_row * 7 + row.token_col] == pytest.approx(row.activation, rel=1e-4)

    latents = pd.read_parquet(r / f"ranking/{POINT}/latents.parquet")
    dead = set(latents.loc[latents["status"] == "dead", "latent"])
    assert not dead & set(images["latent"])
    metrics = pd.read_parquet(r / "metrics")
    assert len(metrics) == 4
    baselines = metrics[(metrics["method"] != "topk") & (metrics["k"].astype(int) == 4)].set_index("method")
    assert sae.load(r / "sae" / POINT.replace("topk", "pca")).config.latents == 384
    assert baselines.loc["pca", "fvu"] < 0.5
    metrics = metrics[metrics["method"] == "topk"]
    metrics = metrics.set_index(metrics["k"].astype(int)).sort_index()
    assert metrics["fvu"].is_monotonic_decreasing
    assert (metrics["l0"] <= metrics.index).all()
    table = pd.read_csv(r / "report/layers.csv")
    assert table.loc[table["method"] == "topk", "fvu"].tolist() == pytest.approx(metrics["fvu"].tolist())

    evidence = r / f"evidence/{POINT}"
    summary = pd.read_parquet(evidence / "summary.parquet").set_index("measure")
    assert summary.loc["fvu", "value"] == pytest.approx(metrics.loc[4, "fvu"], rel=1e-3)
    assert ((summary["low"] <= summary["value"] + 1e-9) & (summary["value"] <= summary["high"] + 1e-9)).all()
    assert latents["stability_cosine"].between(-1, 1).all()
    best = pd.read_parquet(r / f"ranking/{POINT}/best_latents.parquet")
    assert summary.loc["concept_recovery", "value"] == pytest.approx(best["f1_held_out"].mean(), abs=1e-6)
    codes = sae.codes(r / "codes" / POINT)
    strongest = codes.images.max(axis=0).toarray()
    top = images[(images["panel"] == "top") & (images["rank"] == 1)].set_index("latent")["activation"]
    assert {latent: strongest[latent] for latent in top.index} == pytest.approx(top.to_dict())
    everything = m.encode(stored[:, 1:].reshape(-1, stored.shape[2]).astype(np.float32))
    np.testing.assert_allclose(codes.z.toarray(), everything, rtol=1e-4, atol=1e-5)
    page = (r / "report/conclusion.html").read_text()
    assert "Layer 3, k 4, topk, seed 0" in page and f"{summary.loc['fvu', 'value']:.3f}" in page
    other = pd.read_parquet(r / f"other_ks/{POINT}.parquet").set_index("at_k")
    assert other.loc[4, "fvu"] == pytest.approx(metrics.loc[4, "fvu"], rel=1e-5)
    assert other.index.tolist() == [1, 2, 4, 8, 16, 32, 64, 128]


def test_the_report_says_how_well_the_backbone_sees(finished):
    facts = read_json(finished / "results/small/reference/reference.json")
    assert set(facts["accuracy"]) == set(sae.concepts.FACTORS)
    text = (finished / "results/small/report/overview.svg").read_text()
    for factor, share in facts["accuracy"].items():
        assert factor in text and f"{share:.1%}" in text


def test_every_artefact_says_what_made_it(finished):
    r = finished / "results/small"
    for found in (
        read_json(r / f"sae/{POINT}/sae.json")["provenance"],
        read_json(r / "activations/layer=3/shard=0000.json")["provenance"],
        read_json(r / "activations/layer=3/statistics.json")["provenance"],
        read_provenance(r / "manifest.parquet"),
        read_provenance(r / f"metrics/{POINT}.parquet"),
        read_provenance(r / f"ranking/{POINT}/latents.parquet"),
    ):
        assert found["versions"]["torch"] and found["settings"]["code"] and found["threads"] == 1
    assert found["inputs"]["results/small/manifest.parquet"] == sha256(r / "manifest.parquet")


def test_logs_keep_the_progress(finished):
    log = (finished / f"results/small/logs/train/{POINT}.log").read_text()
    assert len(re.findall(r"epoch \d/4: FVU [\d.]+ L0 [\d.]+ dead", log)) == 4


@pytest.mark.parametrize("ending", ["html", "zip"])
def test_the_snakemake_report_works_without_a_network(finished, ending):
    done = snakemake(
        finished,
        "--report",
        f"report.{ending}",
        config=CONFIG,
        cores=None,
        http_proxy="http://127.0.0.1:9",
        https_proxy="http://127.0.0.1:9",
    )
    assert done.returncode == 0, done.stderr
    if ending == "html":
        text = (finished / "report.html").read_text()
    else:
        with zipfile.ZipFile(finished / "report.zip") as archive:
            text = "".join(
                archive.read(n).decode(errors="replace") for n in archive.namelist() if n.endswith((".html", ".js"))
            )
    for word in ("3 Layers compared", "4 Latents", "0003", "drawn at random", "The inputs"):
        assert word in text, word


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"epochs": 1, "batch": 10**6}}, "error: batch 1000000: there are only 4"),
        ({"device": "cuda:7", "report": {"images": 5}}, "error: device cuda:7: this machine has"),
        ({"model": {"checkpoint": "nothing.pth"}}, "error: checkpoint nothing.pth: no such file"),
    ],
)
def test_mistakes_that_a_job_finds_are_one_line_and_lose_nothing(copy, change, message):
    before = sha256(copy / f"results/small/sae/{POINT}/sae.safetensors")
    done = snakemake(copy, config={**CONFIG, **change})
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert message in output
    assert "Traceback" not in output
    if "training" not in change:
        assert sha256(copy / f"results/small/sae/{POINT}/sae.safetensors") == before


def test_a_training_reads_its_checkpoint_and_keeps_one_that_it_cannot_use(copy):
    checkpoint = copy / f"results/small/checkpoints/{POINT}.safetensors"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    (copy / f"results/small/sae/{POINT}/sae.safetensors").unlink()
    checkpoint.write_bytes(b"nonsense")
    done = snakemake(copy, f"results/small/sae/{POINT}/sae.safetensors", config=CONFIG)
    assert done.returncode != 0
    assert f"error: results/small/checkpoints/{POINT}.safetensors: not a checkpoint that can be read" in done.stderr
    assert checkpoint.read_bytes() == b"nonsense"


def test_an_exported_sae_comes_back_as_a_point_of_the_grid_with_the_same_numbers(copy):
    model, theirs = sae.load(copy / f"results/small/sae/{POINT}"), POINT.replace("topk", "imported")
    sae.export(model, copy / "theirs", "saelens")
    config = {**changed(grid={"ks": [4], "methods": ["topk", "imported"]}), "imported": "theirs"}
    results, page = copy / "results/small", f"results/small/explorer/data/{theirs}"
    done = snakemake(copy, page, "export", config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, back = (pd.read_parquet(results / f"metrics/{point}.parquet") for point in (POINT, theirs))
    pd.testing.assert_frame_equal(ours, back, rtol=1e-3)
    ours, back = (pd.read_parquet(results / f"evidence/{point}/summary.parquet") for point in (POINT, theirs))
    ours, back = (table.set_index("measure")["value"] for table in (ours, back))
    pd.testing.assert_series_equal(back, ours.drop("stability"), rtol=1e-2)  # nobody trained another seed of it

    exported, one = results / "export" / theirs, np.eye(192)
    card = ModelCard.load(exported / "README.md")
    assert "vision-transformer" in card.data.tags and "Imported from SAELens" in card.text
    for folder in (exported, exported / "saelens", exported / "sparsify"):
        np.testing.assert_allclose(sae.load(folder).decode(one), model.decode(one), rtol=1e-4, atol=1e-4)

    assert planned(copy, page, config=config) == {}
    model.b_dec += 1e-3
    sae.export(model, copy / "theirs", "saelens")
    assert planned(copy, page, config=config)["imported"] == 1
    done = snakemake(copy, page, config=config | {"sae": {"expansion": 2}})
    assert "it has 192 latents, the baselines would have 384; set sae.expansion to 1" in done.stdout + done.stderr
