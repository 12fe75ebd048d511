"""The SAE and its training, on activations whose dictionary is known."""

import numpy as np
import pandas as pd
import pytest
import torch

import sae
from sae import metrics, training
from sae.activations import Activations
from sae.autoencoder import Settings, SparseAutoencoder
from sae.errors import InputError


def planted(n=20_000, d=32, features=48, active=3, seed=0, offset=2.0):
    """Returns activations [n, d], sums of `active` of `features` directions, and the directions [features, d]."""
    rng = np.random.default_rng(seed)
    dictionary = rng.standard_normal((features, d))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    codes = np.zeros((n, features))
    chosen = rng.random((n, features)).argpartition(active, axis=1)[:, :active]
    np.put_along_axis(codes, chosen, rng.uniform(1, 3, (n, active)), 1)
    x = codes @ dictionary + 0.02 * rng.standard_normal((n, d)) + offset * rng.standard_normal(d)
    return x.astype(np.float32), dictionary


def best_cosines(m, dictionary):
    return np.abs(dictionary @ m.W_dec.numpy().T).max(1)


@pytest.fixture(scope="module")
def data():
    return planted()


@pytest.fixture(scope="module")
def trained(data):
    torch.set_num_threads(1)
    return sae.train(data[0], k=3, latents=96, seed=0, epochs=12, batch=512, recipe=sae.Recipe(lr=3e-3))


def test_a_planted_dictionary_is_recovered(data, trained):
    x, dictionary = data
    assert best_cosines(trained, dictionary).mean() >= 0.95
    random = np.random.default_rng(1).standard_normal((96, 32))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    assert np.abs(dictionary @ random.T).max(1).mean() < 0.6  # what chance gives here
    assert metrics.fvu(x, trained.decode(trained.encode(x))) < 0.05


def test_a_smaller_k_leaves_more_unexplained(data):
    x, _ = data
    values = []
    for k in (1, 2, 4):
        m = sae.train(x, k=k, latents=96, epochs=3, batch=512, recipe=sae.Recipe(lr=3e-3))
        values.append(metrics.fvu(x, m.decode(m.encode(x))))
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
    assert metrics.fvu(x * 7 + 100, theirs) == pytest.approx(
        metrics.fvu(x, trained.decode(trained.encode(x))), abs=0.02
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
    assert again.settings == trained.settings
    np.testing.assert_array_equal(again.encode(data[0][:100]), trained.encode(data[0][:100]))
    (tmp_path / "m" / "sae.json").write_text(
        (tmp_path / "m" / "sae.json").read_text().replace('"latents": 96', '"latents": 97')
    )
    with pytest.raises(InputError, match="does not fit"):
        sae.load(tmp_path / "m")
    with pytest.raises(InputError, match="no SAE here"):
        sae.load(tmp_path)


def test_gradient_of_the_sparse_decode_is_that_of_the_dense_one():
    torch.manual_seed(0)
    m = SparseAutoencoder(Settings(5, 11, 3)).double()
    with torch.no_grad():
        for p in m.parameters():
            p.copy_(torch.randn_like(p))
    x = torch.randn(7, 5, dtype=torch.float64)
    loss, _, _, _ = training._step(m, x, torch.zeros(11, dtype=torch.bool), sae.Recipe())
    loss.backward()
    sparse = [p.grad.clone() for p in m.parameters()]
    m.zero_grad()
    pre = (x - m.b_dec) @ m.W_enc.T + m.b_enc
    kept = pre >= pre.topk(3, dim=-1).values[:, -1:]
    ((x - (pre.relu() * kept) @ m.W_dec - m.b_dec) ** 2).mean().backward()
    for p, gradient in zip(m.parameters(), sparse, strict=True):
        torch.testing.assert_close(p.grad, gradient)


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


def test_auxk_trains_only_dead_latents_and_not_the_bias():
    torch.manual_seed(0)
    m = SparseAutoencoder(Settings(6, 10, 2))
    with torch.no_grad():
        for p in m.parameters():
            p.copy_(torch.randn_like(p))
    dead = torch.zeros(10, dtype=torch.bool)
    dead[[3, 8]] = True
    x = torch.randn(50, 6)
    m.b_enc.data[[3, 8]] = -4.0  # never among the two largest, sometimes above 0
    m.W_enc.data[[3, 8]] *= 3
    gradients = {}
    for alpha in (0.0, 1.0):
        m.zero_grad()
        training._step(m, x, dead, sae.Recipe(auxk=alpha))[0].backward()
        gradients[alpha] = {name: p.grad.clone() for name, p in m.named_parameters()}
    change = (gradients[1.0]["W_dec"] - gradients[0.0]["W_dec"]).abs().sum(1)
    assert (change[dead] > 0).all() and (change[~dead] == 0).all()


def test_training_log_has_a_row_per_logged_step(data, tmp_path):
    sae.train(data[0], k=4, latents=64, epochs=2, batch=4096, log=tmp_path / "training.csv")
    log = pd.read_csv(tmp_path / "training.csv")
    assert list(log.columns) == ["step", "epoch", "tokens", "loss", "fvu", "l0", "dead", "lr", "tokens_per_s"]
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
    assert metrics.fvu(x, m.decode(m.encode(x))) < 0.5
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
        ({"x": np.full((10, 4), np.nan, np.float32)}, "finite"),
        ({"x": np.zeros((0, 4), np.float32)}, "n > 0"),
        ({"recipe": sae.Recipe(lr=1e30, clip=None)}, "not finite"),
    ],
)
def test_contradictions_are_explained(data, change, message):
    arguments = {"x": data[0][:2000], "k": 4, "latents": 64, "epochs": 2, "batch": 500} | change
    with pytest.raises(InputError, match=message):
        sae.train(**arguments)


def test_bf16_products_reach_nearly_the_same(data):
    x, _ = data
    m = sae.train(x, k=3, latents=96, seed=0, epochs=6, batch=512, precision="bf16", recipe=sae.Recipe(lr=3e-3))
    assert m.W_dec.dtype == torch.float32
    assert metrics.fvu(x, m.decode(m.encode(x))) < 0.1


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
