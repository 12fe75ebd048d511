"""Reading and writing SAEs of other libraries, where no other library is needed to see that it is right."""

import io
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_libraries import LATENTS, WIDTH, K, ours

import sae
from sae.exchange import imported
from sae.files import write_arrays
from sae.store import Activations

X = np.random.default_rng(0).standard_normal((400, WIDTH)).astype(np.float32) + 2


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (WIDTH, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, WIDTH), "b_dec": (WIDTH,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def by_hand(w, x, select, subtract=True):
    """Returns latents and reconstructions in float64."""
    w = {name: array.double() for name, array in w.items()}
    x = torch.from_numpy(x).double()
    z = select((x - w["b_dec"] if subtract else x) @ w["W_enc"] + w["b_enc"])
    return z.numpy(), (z @ w["W_dec"] + w["b_dec"]).numpy()


def top(pre):
    values, indices = pre.topk(K, dim=1)
    return torch.zeros_like(pre).scatter_(1, indices, values.relu())


def check(path, expected):
    model = sae.load(path)
    z = model.encode(X)
    np.testing.assert_allclose(z, expected[0], atol=1e-4)
    np.testing.assert_allclose(model.decode(z), expected[1], atol=1e-3)
    return model


@pytest.mark.parametrize("turned", [False, True])
def test_a_plain_file_of_weights_is_read(turned, tmp_path):
    w = weights()
    stored = w | ({"W_enc": w["W_enc"].T.contiguous()} if turned else {})
    save_file(stored, tmp_path / "relu.safetensors")
    assert check(tmp_path / "relu.safetensors", by_hand(w, X, torch.relu)).config.method == "relu"
    save_file(stored | {"k": torch.tensor(K)}, tmp_path / "topk.safetensors")
    assert check(tmp_path / "topk.safetensors", by_hand(w, X, top)).config.k == K
    save_file(stored | {"threshold": torch.full((LATENTS,), 2.0)}, tmp_path / "jump.safetensors")
    check(tmp_path / "jump.safetensors", by_hand(w, X, lambda pre: pre * (pre > 2)))
    save_file(stored | {"apply_b_dec_to_input": torch.tensor(0)}, tmp_path / "outside.safetensors")
    check(tmp_path / "outside.safetensors", by_hand(w, X, torch.relu, subtract=False))


@pytest.mark.parametrize("kind", ["TopK", "BatchTopK", "Relu"])
def test_a_checkpoint_of_saev_is_read(kind, tmp_path):
    w = {name: array + 1 if name == "b_enc" else array for name, array in weights().items()}
    state = dict(w) | ({"activation.threshold": torch.tensor(1.5)} if kind == "BatchTopK" else {})
    header = {"schema": 5, "cfg": {"activation": {"cls": kind, "params": {"top_k": K}}}, "lib": "0.6"}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    (tmp_path / "sae.pt").write_bytes(json.dumps(header).encode() + b"\n" + buffer.getvalue())
    select = {"TopK": top, "BatchTopK": lambda pre: pre * (pre > 1.5), "Relu": torch.relu}[kind]
    for path in (tmp_path, tmp_path / "sae.pt"):
        check(path, by_hand(w, X, select, subtract=False))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"b_enc": torch.zeros(7)}, "b_enc has shape"),
        ({"W_dec": None}, "W_dec is missing"),
        ({"b_dec": torch.full((WIDTH,), torch.nan)}, "b_dec holds numbers that are not finite"),
        ({"threshold": torch.full((LATENTS,), -1.0)}, "a threshold below 0"),
        ({"k": torch.tensor(LATENTS + 1)}, f"k {LATENTS + 1} does not fit {LATENTS} latents"),
        ({"mean": torch.zeros(WIDTH)}, "a plain SAE has no mean"),
        ({"k": torch.tensor(3), "threshold": torch.ones(LATENTS)}, "a k and a threshold"),
    ],
)
def test_weights_that_make_no_sae_are_refused(changed, reason, tmp_path):
    w = {name: array for name, array in (weights() | changed).items() if array is not None}
    save_file(w, tmp_path / "sae.safetensors")
    with pytest.raises(sae.InputError, match=reason):
        sae.load(tmp_path / "sae.safetensors")


def test_files_that_are_no_sae_are_named(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for path, reason in ((tmp_path / "notes.txt", "not the file of an SAE"), (tmp_path / "nowhere", "no SAE here")):
        with pytest.raises(sae.InputError, match=reason):
            sae.load(path)
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(sae.InputError, match="the weights are not"):
        sae.load(tmp_path)


def test_a_layernorm_and_rules_of_other_kinds_are_refused_on_export(tmp_path):
    torch.manual_seed(0)
    normed = sae.SparseAutoencoder(sae.autoencoder.SAEConfig(WIDTH, LATENTS, K, input="layernorm"))
    for library in ("saelens", "sparsify"):
        with pytest.raises(sae.InputError, match="division by each token's spread does not"):
            sae.export(normed, tmp_path, library)
    with pytest.raises(sae.InputError, match="batchtopk those above a threshold"):
        sae.export(ours("batchtopk"), tmp_path, "sparsify")
    with pytest.raises(sae.InputError, match="must be one of saelens, sparsify"):
        sae.export(ours("topk"), tmp_path, "other")
    assert not list(tmp_path.iterdir())


def test_an_export_that_would_change_the_sae_is_refused(tmp_path):
    model = ours("topk")
    model.mean += 1e6  # float32 cannot hold the difference of x and such a bias
    with pytest.raises(sae.InputError, match="would change the SAE"):
        sae.export(model, tmp_path, "saelens")
    assert not list(tmp_path.iterdir())


def test_an_imported_sae_must_belong_to_the_layer(tmp_path):
    source = sae.Source(layer=3)
    model = sae.train(X, sae.TrainConfig(K, LATENTS, epochs=4, batch=64), device="cpu", source=source)
    sae.export(model, tmp_path / "sae", "saelens", X)
    point = imported(tmp_path / "sae", 3, K, "all", Activations.of(X))
    assert (point.config.layer, point.config.tokens, point.config.k) == (3, "all", K)
    assert point.record["imported_from"] == "SAELens" and point.record["l0"] == K and point.record["fvu"] < 1
    for layer, k, given, reason in (
        (2, K, X, "it was trained on layer 3, not on layer 2"),
        (3, K + 1, X, f"it keeps {K} latents per token"),
        (3, K, X[:, 1:], f"its width is {WIDTH}"),
        (3, K, -3 * X, "worse than the mean activation"),
    ):
        with pytest.raises(sae.InputError, match=reason):
            imported(tmp_path / "sae", layer, k, "all", Activations.of(given))


def test_our_own_files_are_read_as_before(tmp_path):
    model = ours("topk")
    model.save(tmp_path)
    np.testing.assert_array_equal(sae.load(tmp_path).encode(X), model.encode(X))
    write_arrays(tmp_path / "plain/w.safetensors", {name: array.numpy() for name, array in weights().items()})
    check(tmp_path / "plain/w.safetensors", by_hand(weights(), X, torch.relu))
