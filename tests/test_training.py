"""The SAE and its training, on activations whose dictionary is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import planted

import sae
from sae import device, training
from sae.activations import Activations
from sae.autoencoder import METHODS
from sae.errors import InputError
from sae.evidence import fidelity
from sae.training.autograd import AutogradStep
from sae.training.sparse import SparseStep

CPU = torch.device("cpu")
NO_INT8 = "this CPU has no instructions for 8-bit integers"


def best_cosines(m, dictionary):
    return np.abs(dictionary @ m.W_dec.numpy().T).max(1)


@pytest.fixture(scope="module")
def new(drawn):
    """Tokens of the same kind that no training saw."""
    return drawn[0][20_000:]


@pytest.fixture(scope="module")
def trained(data):
    torch.set_num_threads(1)
    return sae.train(data[0], k=3, latents=96, seed=0, epochs=12, batch=512, recipe=sae.Recipe(lr=3e-3))


@pytest.fixture(scope="module")
def by_method(data, trained):
    """An SAE of each method."""
    recipe = sae.Recipe(lr=3e-3)
    others = (method for method in METHODS if method != "topk")
    return {"topk": trained} | {m: sae.train(data[0], 3, 96, m, epochs=12, batch=512, recipe=recipe) for m in others}


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
    m = by_method[method]
    z = m.encode(new)
    active = (z > 0).sum(1)
    assert active.mean() == pytest.approx(3, rel=0.15)
    assert (active.max() == 3) == (method in ("topk", "matryoshka"))
    np.testing.assert_allclose(m.encode(new[:1]), z[:1], atol=1e-5)  # a token does not see its batch


@pytest.mark.parametrize("method", ["batchtopk", "relu", "jumprelu"])
def test_a_short_run_with_many_latents_has_k_active_and_few_dead(data, new, method):
    m = sae.train(data[0], 8, 512, method, epochs=2, batch=256)
    z = m.encode(new)
    assert (z > 0).sum(1).mean() == pytest.approx(8, rel=0.2)
    assert ((z > 0).sum(0) == 0).mean() < 0.05


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_same_when_saved_and_loaded(by_method, data, method, tmp_path):
    m = by_method[method]
    m.save(tmp_path)
    again = sae.load(tmp_path)
    assert again.config == m.config and again.record == m.record
    np.testing.assert_array_equal(again.encode(data[0][:100]), m.encode(data[0][:100]))
    assert (method in ("batchtopk", "jumprelu")) == hasattr(again, "threshold")


def test_the_first_latents_of_a_matryoshka_reconstruct_on_their_own(data, by_method):
    x = data[0]
    fvu = {}
    for method in ("topk", "matryoshka"):
        z = by_method[method].encode(x)
        z[:, 48:] = 0
        fvu[method] = fidelity.fvu(x, by_method[method].decode(z))
    assert fvu["matryoshka"] < 0.7 * fvu["topk"]


def test_another_k_than_it_was_trained_for(data, trained, by_method):
    x = data[0][:1000]
    for m in (trained, by_method["jumprelu"]):
        z = m.encode(x, k=2)
        assert ((z > 0).sum(1) == 2).all()
        best = np.sort(m.encode(x, k=96), axis=1)[:, -2:]
        np.testing.assert_allclose(np.sort(z, axis=1)[:, -2:], best, atol=1e-5)
    table = fidelity.at_other_ks(trained, Activations.of(x), [8, 1, 3, 1000])
    assert table["at_k"].tolist() == [1, 3, 8]  # no more than there are latents
    for row in table.itertuples():
        z = trained.encode(x, k=row.at_k)
        assert row.fvu == pytest.approx(fidelity.fvu(x, trained.decode(z)), rel=1e-5)
        assert row.l0 == pytest.approx((z > 0).sum(1).mean())
    with pytest.raises(InputError, match="k 97"):
        trained.encode(x, k=97)


def test_without_numba_torch_trains_the_same(data, monkeypatch):
    x = data[0][:4000]
    ends = []
    for sparse in (SparseStep, None):
        monkeypatch.setattr(training, "SparseStep", sparse)
        ends.append(sae.train(x, k=3, latents=64, epochs=2, batch=500, precision="fp32"))
    torch.testing.assert_close(ends[0].W_dec, ends[1].W_dec, atol=1e-4, rtol=0)
    assert fidelity.fvu(x, ends[0].decode(ends[0].encode(x))) == pytest.approx(
        fidelity.fvu(x, ends[1].decode(ends[1].encode(x))), rel=1e-3
    )


def test_a_smaller_k_leaves_more_unexplained(data):
    x, _ = data
    values = []
    for k in (1, 2, 4):
        m = sae.train(x, k=k, latents=96, epochs=3, batch=512, recipe=sae.Recipe(lr=3e-3))
        values.append(fidelity.fvu(x, m.decode(m.encode(x))))
    assert values[0] > values[1] > values[2]


def test_encode_gives_k_latents_a_token_selected_over_latents(data, trained):
    x = data[0][:200]
    z = trained.encode(x)
    assert isinstance(z, np.ndarray) and z.shape == (200, 96)
    assert (z >= 0).all()
    assert ((z > 0).sum(1) <= 3).all() and (z > 0).sum(1).mean() > 2.5
    np.testing.assert_allclose(z[:50], trained.encode(x[:50]), atol=1e-5)  # a token does not see its batch
    tensor = trained.encode(torch.from_numpy(x))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), z)
    with torch.no_grad():
        np.testing.assert_allclose(trained(torch.from_numpy(x)).numpy(), trained.decode(z), atol=1e-4)


def test_decoder_rows_have_norm_one(trained):
    np.testing.assert_allclose(trained.W_dec.norm(dim=1).numpy(), 1, atol=1e-5)


def test_reconstruction_is_in_the_units_of_x_and_follows_shift_and_scale(data, trained):
    x, _ = data
    moved = sae.train(x * 7 + 100, k=3, latents=96, seed=0, epochs=12, batch=512, recipe=sae.Recipe(lr=3e-3))
    theirs = moved.decode(moved.encode(x * 7 + 100))
    assert fidelity.fvu(x * 7 + 100, theirs) == pytest.approx(
        fidelity.fvu(x, trained.decode(trained.encode(x))), abs=0.02
    )
    assert abs(theirs.mean() - (x * 7 + 100).mean()) < 0.5


def test_the_same_seed_gives_the_same_bytes_another_seed_others(data, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sae.train(data[0], k=4, latents=64, seed=seed, epochs=1, batch=1000).save(tmp_path / name)
    a, b, c = ((tmp_path / name / "sae.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_saved_and_loaded_it_is_the_same(trained, data, tmp_path):
    trained.save(tmp_path / "m")
    again = sae.load(tmp_path / "m")
    assert again.config == trained.config
    np.testing.assert_array_equal(again.encode(data[0][:100]), trained.encode(data[0][:100]))
    (tmp_path / "m" / "sae.json").write_text(
        (tmp_path / "m" / "sae.json").read_text().replace('"latents": 96', '"latents": 97')
    )
    with pytest.raises(InputError, match="does not fit"):
        sae.load(tmp_path / "m")
    with pytest.raises(InputError, match="no SAE here"):
        sae.load(tmp_path)


def test_auxk_revives_dead_latents(monkeypatch):
    x, _ = planted(features=96, seed=3)
    start = training._start

    def half_dead(*arguments):
        m = start(*arguments)
        m.b_enc.data[:48] = -3.0  # never among the largest: without help they stay dead for ever
        return m

    monkeypatch.setattr(training, "_start", half_dead)
    dead = {}
    for alpha in (0.0, 1 / 32):
        recipe = sae.Recipe(lr=3e-3, auxk=alpha, dead_after=0.02)
        m = sae.train(x, k=3, latents=96, epochs=6, batch=512, recipe=recipe)
        dead[alpha] = float((m.encode(x)[:, :48] == 0).all(0).mean())
    assert dead[0.0] > 0.9
    assert dead[1 / 32] < 0.3


def test_training_log_has_a_row_per_logged_step(data, tmp_path):
    sae.train(data[0], k=4, latents=64, epochs=2, batch=4096, log=tmp_path / "training.csv")
    log = pd.read_csv(tmp_path / "training.csv")
    assert list(log.columns) == ["step", "epoch", "tokens", "loss", "fvu", "l0", "dead", "lr"]
    assert log["tokens"].iloc[-1] == 40_000
    assert log["step"].tolist() == list(range(1, 11))  # 5 batches an epoch, the last one short
    assert log["fvu"].iloc[-1] < log["fvu"].iloc[0]
    assert log["lr"].iloc[-1] < log["lr"].max()
    assert (log["l0"] <= 4).all()


def test_the_notebooks_recipe(data, tmp_path):
    x, _ = data
    recipe = sae.Recipe(
        input="layernorm",
        decoder="start",
        lr=0.002,
        lr_per_epoch=0.7,
        warmup=0,
        decay=0,
        clip=None,
        auxk=0,
        whole_images=True,
    )
    m = sae.train(x, k=8, latents=64, epochs=3, batch=100, recipe=recipe, log=tmp_path / "log.csv")
    log = pd.read_csv(tmp_path / "log.csv")
    np.testing.assert_allclose(log.groupby("epoch")["lr"].max(), [0.002, 0.0014, 0.00098])
    assert (log.groupby("epoch")["lr"].nunique() == 1).all()
    assert fidelity.fvu(x, m.decode(m.encode(x))) < 0.5
    m.save(tmp_path / "m")
    np.testing.assert_array_equal(sae.load(tmp_path / "m").encode(x[:9]), m.encode(x[:9]))
    assert not np.allclose(m.W_dec.norm(dim=1).numpy(), 1, atol=1e-4)  # normalised at the start only


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 65}, "k 65: must lie between 1 and the number of latents, 64"),
        ({"k": 0}, "k 0"),
        ({"method": "magic"}, "magic"),
        ({"epochs": 0}, "epochs 0"),
        ({"device": "tpu"}, "device tpu"),
        ({"precision": "fp8"}, "precision fp8"),
        ({"x": np.full((600, 4), np.nan, np.float32)}, "image 0: an activation is not finite"),
        ({"x": np.zeros((0, 4), np.float32)}, "n > 0"),
        ({"recipe": sae.Recipe(lr=1e30, clip=None)}, "k 4, step 1: the loss is not finite; lower training.lr"),
        ({"method": "relu", "recipe": sae.Recipe(lr=1e30, clip=None)}, "step 2: the loss is not finite"),
        ({"batch": 2001}, "batch 2001: there are only 2000 tokens"),
    ],
)
def test_contradictions_are_explained(data, change, message):
    arguments = {"x": data[0][:2000], "k": 4, "latents": 64, "epochs": 2, "batch": 500} | change
    with pytest.raises(InputError, match=message):
        sae.train(**arguments)


@pytest.mark.parametrize(
    "precision",
    [
        "bf16",
        pytest.param("int8", marks=pytest.mark.skipif(not device.fast_int8(CPU), reason=NO_INT8)),
    ],
)
@pytest.mark.parametrize("method", ["topk", "batchtopk", "matryoshka"])
def test_rounded_products_reach_nearly_the_same(data, method, precision):
    x, _ = data
    m = sae.train(x, 3, 96, method, epochs=12, batch=512, precision=precision, recipe=sae.Recipe(lr=3e-3))
    assert m.W_dec.dtype == torch.float32 and m.record["precision"] == precision
    exact = sae.train(x, 3, 96, method, epochs=12, batch=512, precision="fp32", recipe=sae.Recipe(lr=3e-3))
    errors = [fidelity.fvu(x, model.decode(model.encode(x))) for model in (exact, m)]
    assert errors[1] == pytest.approx(errors[0], abs=0.03)


@pytest.mark.parametrize("bf16", [False, True])
def test_auto_is_the_precision_that_this_device_multiplies_fastest(data, monkeypatch, bf16):
    monkeypatch.setattr(device, "fast_bf16", lambda _device: bf16)
    for int8 in (True, False):  # the last also where this CPU could
        monkeypatch.setattr(device, "fast_int8", lambda _device, int8=int8: int8)
        other = "bf16" if bf16 else "fp32"
        assert training._fastest_precision(SparseStep, CPU) == ("int8" if int8 else other)
        assert training._fastest_precision(AutogradStep, CPU) == other
    assert sae.train(data[0][:1000], 3, 64, batch=500).record["precision"] == other
    with pytest.raises(InputError, match="precision int8: method topk on this cpu cannot multiply so"):
        sae.train(data[0][:1000], 3, 64, batch=500, precision="int8")


def test_methods_that_are_not_k_sparse_have_no_int8(data):
    for method in ("relu", "jumprelu"):
        with pytest.raises(InputError, match=f"precision int8: method {method} on this cpu cannot multiply so"):
            sae.train(data[0][:1000], 3, 64, method, batch=500, precision="int8")


def test_whole_images_stay_together():
    x = Activations(
        [np.arange(24, dtype=np.float32).reshape(6, 4, 1)],
        np.arange(6),
        np.array([(0, i) for i in range(6)]),
        slice(None),
    )
    batches = list(x.shuffled(2, np.random.default_rng(0), whole_images=True))
    assert [len(b) for b in batches] == [8, 8, 8]
    assert all((np.diff(b.reshape(2, 4), axis=1) == 1).all() for b in batches)
    assert sorted(np.concatenate(batches).ravel()) == list(range(24))


def test_an_error_gives_the_threads_back(data, tmp_path):
    torch.set_num_threads(2)
    (tmp_path / "c.safetensors").write_bytes(b"nonsense")
    for arguments in ({"checkpoint": tmp_path / "c.safetensors"}, {"recipe": sae.Recipe(lr=1e30, clip=None)}):
        with pytest.raises(InputError):
            sae.train(data[0][:2000], 3, 64, batch=500, **arguments)
        assert torch.get_num_threads() == 2


def test_an_activation_that_is_not_finite_is_named(data):
    x = data[0][:6000].reshape(1000, 6, 32).copy()
    x[777, 3, 5] = np.inf
    rows = np.stack([np.zeros(1000, int), np.arange(1000)], 1)
    store = Activations([x], np.arange(1000) + 50, rows, slice(None))
    with pytest.raises(InputError, match="layer 9 k 3, before step 1: image 827: an activation is not finite"):
        sae.train(store, 3, 64, batch=500, layer=9, centre=(np.zeros(32), 1.0))


def test_row_numbers_come_in_the_order_of_the_rows():
    x = Activations(
        [np.arange(60, dtype=np.float32).reshape(10, 3, 2)],
        np.arange(10),
        np.array([(0, i) for i in range(10)]),
        slice(None),
    )
    everything = x.read(np.arange(10)).reshape(-1, 2)
    for whole_images in (False, True):
        rows = list(x.shuffled(4, np.random.default_rng(0), whole_images))
        places = list(x.shuffled(4, np.random.default_rng(0), whole_images, x.places))
        assert [len(p) for p in places] == [len(r) for r in rows]
        for part, place in zip(rows, places, strict=True):
            np.testing.assert_array_equal(everything[place], part)
        assert sorted(np.concatenate(places)) == list(range(30))


def test_arrays_of_any_layout_train_the_same(data):
    x = data[0][:3000]
    frozen, wide = x.copy(), np.zeros((3000, 64), np.float32)
    frozen.flags.writeable = False
    wide[:, ::2] = x
    backwards = x[::-1].copy()
    ends = [sae.train(a, 3, 64, batch=500) for a in (x, frozen, wide[:, ::2], backwards[::-1], torch.from_numpy(x))]
    assert all(torch.equal(ends[0].W_dec, other.W_dec) for other in ends[1:])


def test_what_is_read_ahead_keeps_order_and_errors():
    assert list(training._ahead(iter(range(50)), depth=3)) == list(range(50))

    def failing():
        yield 1
        raise InputError("a shard is damaged")

    items = training._ahead(failing())
    assert next(items) == 1
    with pytest.raises(InputError, match="damaged"):
        next(items)
    assert next(training._ahead(iter(range(10**9)))) == 0  # left early: its thread ends
