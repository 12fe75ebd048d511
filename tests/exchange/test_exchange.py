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
        ({"k": torch.tensor([4, 8])}, "must be one number"),
        ({"k": torch.tensor(torch.nan)}, "must be a whole number"),
        ({"mean": torch.zeros(WIDTH)}, "a plain SAE has no mean"),
        ({"k": torch.tensor(3), "threshold": torch.ones(LATENTS)}, "a k and a threshold"),
    ],
)
def test_weights_that_make_no_sae_are_refused(changed, reason, tmp_path):
    w = {name: array for name, array in (weights() | changed).items() if array is not None}
    save_file(w, tmp_path / "sae.safetensors")
    with pytest.raises(sae.InputError, match=reason):
        sae.load(tmp_path / "sae.safetensors")


def saelens(folder, arrays, **config):
    """Writes an SAE as SAELens does."""
    folder.mkdir()
    save_file({name: array.contiguous() for name, array in arrays.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def test_settings_of_older_versions_of_saelens_are_understood(tmp_path):
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "hook_point": "blocks.{layer}.hook_resid_pre"}
    folder = saelens(tmp_path / "three", weights(), **old, hook_point_layer=4, normalize_activations=False)
    assert check(folder, by_hand(weights(), X, top)).config.layer == 3
    folder = saelens(
        tmp_path / "five",
        weights(),
        architecture="standard",
        activation_fn="relu",
        hook_name="blocks.2.hook_resid_post",
    )
    assert check(folder, by_hand(weights(), X, torch.relu)).config.layer == 2
    below = weights() | {"threshold": torch.full((LATENTS,), -1e-4)}  # its ReLU comes first
    check(saelens(tmp_path / "jump", below, architecture="jumprelu"), by_hand(weights(), X, torch.relu))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architecture": "gated"}, "architecture gated"),
        ({"architecture": "matryoshka_batchtopk"}, "save it with save_inference_model"),
        ({"activation_fn": "gelu"}, "activation_fn gelu"),
        ({"normalize_activations": True}, "fold it into the weights"),
        ({"reshape_activations": "hook_z"}, "the heads of an attention layer"),
        ({"architecture": "jumprelu"}, "threshold is missing"),
        ({"architecture": None}, "architecture None"),
        ({"activation_fn": "topk", "activation_fn_kwargs": [1]}, "activation_fn_kwargs is not a table"),
        ({"architecture": "topk", "k": 1e999}, "must be a whole number"),
        ({"hook_point": "blocks.{layer}.hook_mlp_out", "hook_point_layer": 2}, r"blocks\.2\.hook_mlp_out"),
        ({"hook_name": "ln_final.hook_normalized"}, "reads the residual stream"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, "reads the residual stream"),
    ],
)
def test_saes_of_saelens_that_cannot_be_expressed_are_refused(config, reason, tmp_path):
    with pytest.raises(sae.InputError, match=reason):
        sae.load(saelens(tmp_path / "sae", weights(), **config))


@pytest.mark.parametrize("rule", ["signed", "batch_topk", "sample_topk"])
def test_rules_of_older_saes_of_eleutherai_are_refused(rule, tmp_path):
    w = weights()
    names = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "W_dec": w["W_dec"]}
    save_file(names | {"b_dec": w["b_dec"]}, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"k": K, "d_in": WIDTH}))
    check(tmp_path, by_hand(w, X, top))
    (tmp_path / "cfg.json").write_text(json.dumps({"k": K, "d_in": WIDTH, rule: True}))
    with pytest.raises(sae.InputError, match=rule):
        sae.load(tmp_path)


@pytest.mark.parametrize(
    ("schema", "kind", "reason"),
    [(9, "TopK", "schema 2 to 5"), (4, "BatchTopK", "without a stored threshold"), (5, "JumpRelu", "only TopK")],
)
def test_checkpoints_of_saev_that_do_not_tell_their_rule_are_refused(schema, kind, reason, tmp_path):
    buffer = io.BytesIO()
    torch.save(weights(), buffer)
    header = {"schema": schema, "cfg": {"activation": {"cls": kind, "params": {"top_k": K}}}}
    (tmp_path / "sae.pt").write_bytes(json.dumps(header).encode() + b"\n" + buffer.getvalue())
    with pytest.raises(sae.InputError, match=reason):
        sae.load(tmp_path)


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
    source = sae.Source(layer=3, tokens="all")
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
        (3, K, np.ones_like(X), "do not vary"),
    ):
        with pytest.raises(sae.InputError, match=reason):
            imported(tmp_path / "sae", layer, k, "all", Activations.of(given))


def test_an_imported_sae_is_used_on_its_own_tokens_and_k(tmp_path):
    source = sae.Source(layer=3, tokens="class")
    model = sae.train(X, sae.TrainConfig(K, LATENTS, "batchtopk", epochs=4, batch=64), device="cpu", source=source)
    model.save(tmp_path / "ours")
    sae.export(model, tmp_path / "theirs", "saelens", X)
    for place, tokens, k, reason in (
        ("ours", "patches", K, "trained on the tokens class, not on patches"),
        ("theirs", "patches", K, "trained on the tokens class, not on patches"),
        ("ours", "class", K + 1, f"it keeps {K} latents per token"),
    ):
        with pytest.raises(sae.InputError, match=reason):
            imported(tmp_path / place, 3, k, tokens, Activations.of(X))
    assert imported(tmp_path / "theirs", 3, K, "class", Activations.of(X)).config.tokens == "class"


def test_an_export_whose_weights_are_wrong_is_refused(tmp_path, monkeypatch):
    model = ours("topk")
    whole = model.encode

    def shuffled(x, k=None):  # stands for folded weights that give other latents
        return whole(x, k).flip(-1)

    monkeypatch.setattr(model, "encode", shuffled)
    with pytest.raises(sae.InputError, match=r"would change the SAE: .* 0\.00% of the tokens have the same latents"):
        sae.export(model, tmp_path, "saelens")
    with pytest.raises(sae.InputError, match=r"the check needs some in \[n, 24\]"):
        sae.export(ours("topk"), tmp_path, "saelens", X[:, :12])


def test_our_own_files_are_read_as_before(tmp_path):
    model = ours("topk")
    model.save(tmp_path)
    np.testing.assert_array_equal(sae.load(tmp_path).encode(X), model.encode(X))
    write_arrays(tmp_path / "plain/w.safetensors", {name: array.numpy() for name, array in weights().items()})
    check(tmp_path / "plain/w.safetensors", by_hand(weights(), X, torch.relu))
