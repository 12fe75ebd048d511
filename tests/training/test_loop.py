"""Training whole SAEs, on activations whose dictionary is known."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import planted
from small import FAST_INT8, INT8

import sae
from sae import device
from sae.autoencoder import METHODS, PER_TOKEN
from sae.errors import InputError
from sae.evidence import fidelity
from sae.store import Activations
from sae.training import loop

LONG = sae.TrainConfig(k=3, latents=96, epochs=12, batch=512, lr=3e-3)
SHORT = sae.TrainConfig(k=3, latents=64, batch=500)


def best_cosines(m, dictionary):
    return np.abs(dictionary @ m.W_dec.numpy().T).max(1)


@pytest.fixture(scope="module")
def new(drawn):
    """Tokens of the same kind that no training saw."""
    return drawn[0][20_000:]


@pytest.fixture(scope="module")
def trained(data):
    torch.set_num_threads(1)
    return sae.train(data[0], LONG)


@pytest.fixture(scope="module")
def by_method(data, trained):
    """An SAE of each method."""
    others = (method for method in METHODS if method != "topk")
    return {"topk": trained} | {method: sae.train(data[0], replace(LONG, method=method)) for method in others}


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_dictionary_is_recovered(data, by_method, method):
    (x, dictionary), m = data, by_method[method]
    assert best_cosines(m, dictionary).mean() >= 0.95
    random = np.random.default_rng(1).standard_normal((96, 32))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    assert np.abs(dictionary @ random.T).max(1).mean() < 0.6  # what chance gives here
    # L1 shrinks what it keeps: the known price of that method.
    assert fidelity.fvu(x, m.decode(m.encode(x))) < (0.5 if method == "relu" else 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_k_latents_active_on_new_tokens(by_method, new, method):
    active = (by_method[method].encode(new) > 0).sum(1)
    assert active.mean() == pytest.approx(3, rel=0.15)
    assert (active.max() == 3) == (method in PER_TOKEN)


@pytest.mark.parametrize("method", ["batchtopk", "relu", "jumprelu"])
def test_a_short_run_with_many_latents_has_k_active_and_few_dead(data, new, method):
    m = sae.train(data[0], sae.TrainConfig(8, 512, method, epochs=2, batch=256))
    z = m.encode(new)
    assert (z > 0).sum(1).mean() == pytest.approx(8, rel=0.2)
    assert ((z > 0).sum(0) == 0).mean() < 0.05


def test_the_first_latents_of_a_matryoshka_reconstruct_on_their_own(data, by_method):
    x = data[0]
    fvu = {}
    for method in ("topk", "matryoshka"):
        z = by_method[method].encode(x)
        z[:, 48:] = 0
        fvu[method] = fidelity.fvu(x, by_method[method].decode(z))
    assert fvu["matryoshka"] < 0.7 * fvu["topk"]


def test_archetypal_latents_stay_near_centres_of_clusters_and_come_back_with_another_seed(data):
    x, config = data[0], sae.TrainConfig(3, 300, "archetypal", epochs=3, batch=256, lr=3e-3)
    first, second = (sae.train(x, config, seed) for seed in (0, 1))
    start = sae.train(x, replace(config, epochs=1, lr=1e-9))
    cosine = (first.W_dec * start.W_dec).sum(1)
    assert cosine.min() > 0.8 - 1e-3 and (cosine < 0.99).any()
    tokens = torch.nn.functional.normalize(torch.from_numpy(x) - start.mean)
    random = torch.nn.functional.normalize(torch.randn(300, 32))
    near, chance = ((tokens @ rows.T).max(1).values.mean() for rows in (start.W_dec, random))
    assert near > chance + 0.1  # a token is near the centre of its cluster
    free = [sae.train(x, replace(config, method="topk", start="random", decoder="unit_norm"), s) for s in (0, 1)]
    agreement = [(a.W_dec @ b.W_dec.T).max(1).values.mean() for a, b in ((first, second), free)]
    assert agreement[0] > agreement[1] + 0.02


def test_a_smaller_k_leaves_more_unexplained(data):
    x, _ = data
    values = []
    for k in (1, 2, 4):
        m = sae.train(x, replace(LONG, k=k, epochs=3))
        values.append(fidelity.fvu(x, m.decode(m.encode(x))))
    assert values[0] > values[1] > values[2]


def test_reconstruction_is_in_the_units_of_x_and_follows_shift_and_scale(data, trained):
    x, _ = data
    moved = sae.train(x * 7 + 100, LONG)
    theirs = moved.decode(moved.encode(x * 7 + 100))
    assert fidelity.fvu(x * 7 + 100, theirs) == pytest.approx(
        fidelity.fvu(x, trained.decode(trained.encode(x))), abs=0.02
    )
    assert abs(theirs.mean() - (x * 7 + 100).mean()) < 0.5


def test_the_same_seed_gives_the_same_bytes_another_seed_others(data, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sae.train(data[0], SHORT, seed).save(tmp_path / name)
    a, b, c = ((tmp_path / name / "sae.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_progress_bars_can_be_turned_off(data, monkeypatch, capsys):
    monkeypatch.setattr(loop, "tqdm", partial(loop.tqdm, disable=True))  # as TQDM_DISABLE=1 does
    sae.train(data[0], SHORT)
    assert "FVU" in capsys.readouterr().err


def test_training_log_has_a_row_per_logged_step(data, tmp_path):
    sae.train(data[0], sae.TrainConfig(k=4, latents=64, epochs=2), log=tmp_path / "training.csv")
    log = pd.read_csv(tmp_path / "training.csv")
    assert list(log.columns) == ["step", "epoch", "tokens", "loss", "fvu", "l0", "dead", "lr"]
    assert log["tokens"].iloc[-1] == 40_000
    assert log["step"].tolist() == list(range(1, 11))  # 5 batches an epoch, the last one short
    assert log["fvu"].iloc[-1] < log["fvu"].iloc[0]
    assert log["lr"].iloc[-1] < log["lr"].max()
    assert (log["l0"] <= 4).all()


@pytest.mark.parametrize("precision", ["bf16", INT8])
@pytest.mark.parametrize("method", ["topk", "batchtopk", "matryoshka"])
def test_rounded_products_reach_nearly_the_same(data, method, precision):
    x, errors = data[0], []
    for name in ("fp32", precision):
        m = sae.train(x, replace(LONG, method=method, precision=name))
        assert m.W_dec.dtype == torch.float32 and m.record["precision"] == name
        errors.append(fidelity.fvu(x, m.decode(m.encode(x))))
    assert errors[1] == pytest.approx(errors[0], abs=0.03)


def test_auxk_revives_dead_latents(monkeypatch):
    x, start, dead = planted(features=96, seed=3)[0], loop.untrained, {}

    def half_dead(*arguments):
        m = start(*arguments)
        m.b_enc.data[:48] = -3.0  # never among the largest: without help they stay dead for ever
        return m

    monkeypatch.setattr(loop, "untrained", half_dead)
    for alpha in (0.0, 1 / 32):
        m = sae.train(x, replace(LONG, epochs=6, auxk=alpha, dead_after=0.02))
        dead[alpha] = float((m.encode(x)[:, :48] == 0).all(0).mean())
    assert dead[0.0] > 0.9
    assert dead[1 / 32] < 0.3


def test_without_numba_torch_trains_the_same(data, monkeypatch):
    x = data[0][:4000]
    ends = []
    for sparse in (loop.SparseStep, None):
        monkeypatch.setattr(loop, "SparseStep", sparse)
        ends.append(sae.train(x, replace(SHORT, epochs=2, precision="fp32")))
    torch.testing.assert_close(ends[0].W_dec, ends[1].W_dec, atol=1e-4, rtol=0)
    errors = [fidelity.fvu(x, m.decode(m.encode(x))) for m in ends]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_the_notebooks_recipe(data, tmp_path):
    x = data[0]
    config = sae.TrainConfig(
        k=8,
        latents=64,
        input="layernorm",
        decoder="start",
        epochs=3,
        batch=100,
        whole_images=True,
        lr=0.002,
        lr_per_epoch=0.7,
        warmup=0,
        decay=0,
        clip=None,
        auxk=0,
    )
    m = sae.train(x, config, log=tmp_path / "log.csv")
    log = pd.read_csv(tmp_path / "log.csv")
    np.testing.assert_allclose(log.groupby("epoch")["lr"].max(), [0.002, 0.0014, 0.00098])
    assert (log.groupby("epoch")["lr"].nunique() == 1).all()
    assert fidelity.fvu(x, m.decode(m.encode(x))) < 0.5
    assert not np.allclose(m.W_dec.norm(dim=1).numpy(), 1, atol=1e-4)  # normalised at the start only


@pytest.mark.parametrize("input", ["standardised", "layernorm"])
def test_the_frozen_baseline_is_trained_by_the_config_of_the_saes(data, input):
    config = sae.TrainConfig(3, 64, "frozen", input=input, batch=500, clip=None)
    m, free = sae.train(data[0], config), sae.train(data[0], replace(config, method="topk", decoder="unit_norm"))
    assert m.config.input == input and hasattr(m, "norm") == (input == "layernorm")
    assert m.state_dict().keys() == free.state_dict().keys()
    assert torch.equal(m.mean, free.mean) and m.scale == free.scale
    start = sae.train(data[0][:500], replace(config, lr=1e-12))
    torch.testing.assert_close(m.W_dec, start.W_dec)
    assert (m.W_enc - start.W_enc).abs().max() > 0.01


def test_known_statistics_spare_a_pass_over_the_data(data, monkeypatch):
    x = Activations.of(data[0][:3000])
    source = sae.Source().measured(x)
    stored = {"mean": source.mean.tolist(), "variance": source.variance.tolist(), "scale": source.scale}
    computed = sae.train(x, SHORT)
    passes = []
    monkeypatch.setattr(Activations, "blocks", lambda *given: passes.append(given))
    given = sae.train(x, SHORT, source=sae.Source(4, "class", stored))
    assert not passes
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in computed.state_dict().items())
    assert given.config.layer == 4 and given.config.tokens == "class"


def test_a_start_from_tokens_points_at_them_and_a_scaled_one_has_their_size(data):
    x, nothing = data[0][:2000], replace(SHORT, batch=2000, lr=1e-12, precision="fp32")
    offsets = x - x.mean(0)
    offsets /= np.linalg.norm(offsets, axis=1, keepdims=True)
    towards = sae.train(x, replace(nothing, start="tokens")).W_dec.numpy()
    np.testing.assert_allclose((towards @ offsets.T).max(1), 1, atol=1e-4)
    random, scaled = (sae.train(x, replace(nothing, start=start)) for start in ("random", "scaled"))
    torch.testing.assert_close(scaled.W_dec, random.W_dec)
    z = scaled.encode(x)
    errors = [fidelity.fvu(x, scaled.decode(z * factor)) for factor in (0.9, 1, 1.1)]
    assert errors[1] == min(errors) < fidelity.fvu(x, random.decode(random.encode(x)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e30, "clip": None}, "k 3, step 1: the loss is not finite; lower training.lr"),
        ({"method": "relu", "lr": 1e30, "clip": None, "epochs": 2}, "step 2: the loss is not finite"),
        ({"batch": 2001}, "batch 2001: there are only 2000 tokens"),
        ({"batch": 2001, "whole_images": True}, "batch 2001: there are only 2000 images"),
        ({"method": "relu", "precision": "int8"}, "precision int8: not possible for method relu on this cpu"),
        ({"method": "jumprelu", "precision": "int8"}, "precision int8: not possible for method jumprelu on this cpu"),
    ],
)
def test_what_the_config_cannot_do_here_is_explained(data, change, message):
    with pytest.raises(InputError, match=message):
        sae.train(data[0][:2000], replace(SHORT, **change))


def with_one(value, dtype=np.float32):
    x = np.random.default_rng(0).standard_normal((600, 4)).astype(dtype)
    x[7, 2] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (with_one(np.nan), "k 3, before step 1: row 7: an activation is nan; need finite numbers up to 1e+15"),
        (with_one(-np.inf, np.float16), "k 3, before step 1: row 7: an activation is inf; need finite"),
        (torch.from_numpy(with_one(np.nan)).bfloat16(), "k 3, before step 1: row 7: an activation is nan; need finite"),
        (with_one(1e200, np.float64), "k 3, before step 1: row 7: an activation is 1e+200; need finite numbers"),
        (np.full((600, 4), 0.1, np.float32), "k 3, before step 1: every token has the same activation; choose another"),
        (np.zeros((600, 4)), "k 3, before step 1: every token has the same activation; choose another layer"),
        (np.zeros((0, 4)), "activations of shape (0, 4): need numbers in [n, d] with n > 0; reshape them"),
        (np.ones((600, 0)), "activations of shape (600, 0): need numbers in [n, d]"),
        (torch.ones(600), "activations of shape (600,): need numbers in [n, d] with n > 0; reshape them"),
        (np.ones((600, 4), complex), "activations of type complex128: need real numbers in [n, d]; convert them"),
        (np.full((600, 4), "1.5"), "activations of type <U3: need real numbers in [n, d]; convert them to float32"),
    ],
)  # fmt: skip
def test_activations_that_cannot_be_trained_on_are_explained(x, message):
    with pytest.raises(InputError) as error:
        sae.train(x, SHORT)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_other_number_formats_are_trained_on(data):
    x = torch.from_numpy(data[0][:2000])
    exact = sae.train(x, SHORT)
    low = x.bfloat16()
    assert torch.equal(sae.train(low, SHORT).W_dec, sae.train(low.float(), SHORT).W_dec)
    assert not torch.equal(sae.train(low, SHORT).W_dec, exact.W_dec)
    whole = (x * 100).to(torch.int64)
    assert torch.equal(sae.train(whole, SHORT).W_dec, sae.train(whole.float(), SHORT).W_dec)


@pytest.mark.parametrize("bf16", [False, True])
def test_auto_is_the_precision_that_this_device_multiplies_fastest(data, monkeypatch, bf16):
    x, other = data[0][:1000], "bf16" if bf16 else "fp32"
    monkeypatch.setattr(device, "fast_bf16", lambda _device: bf16)
    if FAST_INT8:
        assert sae.train(x, SHORT).record["precision"] == "int8"
    assert sae.train(x, replace(SHORT, method="relu")).record["precision"] == other
    monkeypatch.setattr(device, "fast_int8", lambda _device: False)
    assert sae.train(x, SHORT).record["precision"] == other
    with pytest.raises(InputError, match="precision int8: not possible for method topk on this cpu"):
        sae.train(x, replace(SHORT, precision="int8"))


def test_an_error_gives_the_threads_back(data, tmp_path):
    torch.set_num_threads(2)
    (tmp_path / "c.safetensors").write_bytes(b"nonsense")
    for config, checkpoint in ((SHORT, tmp_path / "c.safetensors"), (replace(SHORT, lr=1e30, clip=None), None)):
        with pytest.raises(InputError):
            sae.train(data[0][:2000], config, checkpoint=checkpoint)
        assert torch.get_num_threads() == 2


def test_an_activation_that_is_not_finite_is_named(data):
    x = data[0][:6000].reshape(1000, 6, 32).copy()
    x[777, 3, 5] = np.inf
    rows = np.stack([np.zeros(1000, int), np.arange(1000)], 1)
    store = Activations([x], np.arange(1000) + 50, rows, slice(None))
    with pytest.raises(InputError, match="layer 9 k 3, before step 1: image 827: an activation is inf"):
        sae.train(store, SHORT, source=sae.Source(layer=9))


def test_arrays_of_any_layout_train_the_same(data):
    x = data[0][:3000]
    frozen, wide = x.copy(), np.zeros((3000, 64), np.float32)
    frozen.flags.writeable = False
    wide[:, ::2] = x
    backwards = x[::-1].copy()
    ends = [sae.train(a, SHORT) for a in (x, frozen, wide[:, ::2], backwards[::-1], torch.from_numpy(x))]
    assert all(torch.equal(ends[0].W_dec, other.W_dec) for other in ends[1:])
