"""SAEs of this project in SAELens and sparsify, and theirs here. These libraries themselves load, make and encode."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

import sae
from sae.autoencoder import SAEConfig, SparseAutoencoder

WORKER = Path(__file__).with_name("other_library.py")
WIDTH, LATENTS, K = 24, 120, 6
OURS = ("topk", "matryoshka", "archetypal", "batchtopk", "relu", "jumprelu")
THEIRS = {
    "saelens": ("topk", "topk-norms", "topk-outside", "standard", "standard-outside", "jumprelu", "batchtopk"),
    "sparsify": ("topk",),
}
REFUSED = {
    "saelens": {
        "topk-layer_norm": "scaled by that token's norm",
        "standard-expected_average_only_in": "the factor is not in the files",
        "topk-mlp": "reads the residual stream",
    },
    "sparsify": {"transcode": "predicts another layer", "skip_connection": "linear map", "groupmax": "only topk"},
}


@dataclass(frozen=True)
class Library:
    """Another library's work: `folder`/ours and `folder`/theirs hold SAEs, each with its codes of x."""

    name: str
    folder: Path
    x: np.ndarray
    methods: tuple[str, ...]


@pytest.fixture(scope="module", params=["saelens", "sparsify"])
def library(request, tmp_path_factory) -> Library:
    """A library that has loaded our exported SAEs, and made some of its own."""
    name, python = request.param, ROOT / "benchmarks/.environments" / request.param / "bin/python"
    if not python.exists():
        pytest.skip(f"{name} is not installed: uv run python benchmarks/peers.py --install saelens sparsify")
    folder = tmp_path_factory.mktemp("exchange") / name
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((3000, WIDTH)) * 3 + 5 * rng.standard_normal(WIDTH)).astype(np.float32)  # as in a ViT
    np.save(folder.parent / "x.npy", x)
    methods = OURS if name == "saelens" else OURS[:3]
    for method in methods:
        sae.export(ours(method), folder / "ours" / method, name)
    command = [
        str(python),
        str(WORKER),
        name,
        str(folder),
        json.dumps(methods),
        json.dumps([*THEIRS[name], *REFUSED[name]]),
    ]
    # sparsify would decode by Triton, which needs a GPU, or its interpreter, which is slow
    variables = os.environ | {"SPARSIFY_DISABLE_TRITON": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr[-2000:]
    return Library(name, folder, x, methods)


def ours(method: str) -> SparseAutoencoder:
    """Returns an SAE for the activations of `folder`, of random weights."""
    torch.manual_seed(0)
    config = SAEConfig(WIDTH, LATENTS, K, method, layer=3)
    model = SparseAutoencoder(config, torch.randn(WIDTH) * 5, 0.31).requires_grad_(False)
    for parameter in (model.W_enc, model.W_dec, model.b_enc, model.b_dec):
        parameter.normal_(std=0.4)
    if hasattr(model, "threshold"):
        model.threshold.uniform_(0.5, 2)
    return model.eval()


def agree(model: SparseAutoencoder, x: np.ndarray, place: Path) -> None:
    """Fails unless 99.99 % of the latents are those of the other library, and reconstructions agree within 1e-5."""
    found, z = np.load(place / "codes.npz"), model.encode(x)
    assert 0.2 < (found["z"] > 0).sum(1).mean() < LATENTS / 1.5
    close = np.abs(found["z"] - z) <= 1e-3 * np.abs(z) + 1e-5
    assert close.mean() >= 0.9999
    same, x_hat = close.all(1), model.decode(z)
    assert np.linalg.norm((found["x_hat"] - x_hat)[same]) <= 1e-5 * np.linalg.norm(x_hat[same])


def test_the_other_library_loads_our_saes_and_finds_the_same_latents(library):
    for method in library.methods:
        place = library.folder / "ours" / method
        agree(ours(method), library.x, place)
        back = sae.load(place)
        agree(back, library.x, place)
        assert back.record and back.record["imported_from"].lower() == library.name


def test_its_saes_have_the_same_latents_here(library):
    for kind in THEIRS[library.name]:
        model = sae.load(library.folder / "theirs" / kind)
        agree(model, library.x, library.folder / "theirs" / kind)
        if library.name == "saelens" and kind != "batchtopk":
            assert model.config.layer == 3
    for kind, reason in REFUSED[library.name].items():
        with pytest.raises(sae.InputError, match=reason):
            sae.load(library.folder / "theirs" / kind)
