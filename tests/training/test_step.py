"""One step of training: all ways against a plain dense formula, in float64.

Without a CUDA device, Triton interprets the kernels for it.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from small import FAST_INT8, INT8, NEEDS_INT8

import sae
from sae.autoencoder import METHODS, SAEConfig, SparseAutoencoder
from sae.training import autograd, loop, passes
from sae.training.autograd import AutogradStep
from sae.training.gpu import GpuStep
from sae.training.sparse import SparseStep

K_SPARSE = ("topk", "batchtopk", "matryoshka", "frozen")  # and archetypal, whose settings alone are others
NEVER = 1e12  # tokens
GPU = pytest.param(GpuStep, marks=pytest.mark.cuda)
INTERPRETED = not torch.cuda.is_available()  # Triton's kernels: a second for a step
SEEDS = [(kind, seed) for kind in (SparseStep, AutogradStep) for seed in range(21)]
SEEDS += [pytest.param(GpuStep, seed, marks=pytest.mark.cuda) for seed in range(5 if INTERPRETED else 21)]


def asked(**changes):
    """A config for steps, which read its training settings alone: the model has its k and size."""
    return sae.TrainConfig(**{"k": 1, "latents": 1} | changes)


def model(method, width, latents, k, source="standardised", seed=0):
    generator = torch.Generator().manual_seed(seed)
    m = SparseAutoencoder(SAEConfig(width, latents, k, method, source)).double()
    with torch.no_grad():
        for p in m.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        m.W_dec /= m.W_dec.norm(dim=1, keepdim=True)
        m.mean.copy_(torch.randn(width, generator=generator))
    return m


def keep_largest(pre, count):
    """The `count` largest of each row, where positive, 0 elsewhere; of equal ones the first."""
    order = pre.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(pre).scatter(1, order, pre.gather(1, order)).relu()


def dense_loss(m, x, dead, config, nested=True):
    """The loss as `steps` states it, by dense differentiable formulas."""
    s = m.config
    target = (x - m.mean) * m.scale
    seen = (
        torch.nn.functional.layer_norm(target, (s.width,), m.norm.weight, m.norm.bias) if hasattr(m, "norm") else None
    )
    pre = (target - m.b_dec if seen is None else seen) @ m.W_enc.T + m.b_enc
    if s.method == "batchtopk":
        z = keep_largest(pre.reshape(1, -1), s.k * len(x)).reshape(pre.shape)
    else:
        z = keep_largest(pre, s.k)
    shares = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1) if s.method == "matryoshka" else (1,)
    prefixes = sorted({max(1, round(share * s.latents)) for share in shares})
    terms = [(target - z[:, :p] @ m.W_dec[:p] - m.b_dec).square().mean() for p in prefixes]
    loss = sum(terms if nested else terms[-1:]) / len(prefixes)
    rest = (target - z @ m.W_dec - m.b_dec).detach()
    if dead.any() and config.auxk:
        chosen = keep_largest(pre.masked_fill(~dead, -torch.inf), min(max(1, s.width // 2), s.latents))
        loss = loss + config.auxk * (rest - chosen @ m.W_dec).square().sum() / rest.square().sum()
    return loss


def expected_gradients(m, x, dead, config, nested=True):
    dense_loss(m, x, dead, config, nested).backward()
    gradients = {name: p.grad.clone() for name, p in m.named_parameters() if p.grad is not None}
    m.zero_grad()
    if config.encoder == "frozen":
        gradients["W_enc"] *= 0
        gradients["b_enc"] *= 0
    if config.decoder in ("unit_norm", "held"):
        along = (gradients["W_dec"] * m.W_dec.detach()).sum(1, keepdim=True)
        gradients["W_dec"] -= along * m.W_dec.detach()
    return gradients


def step_of(kind, m, config, dead=None, precision="fp32"):
    m = m.to("cuda") if kind is GpuStep and torch.cuda.is_available() else m
    step = kind(m, config, 5.0 if dead is not None else NEVER, 100, precision)
    if dead is not None:
        step.silent += dead.to(step.silent.device) * 10
    return step


def gradients_of(step, x):
    try:
        step.gradients(x.to(step.silent.device))
    finally:
        step.close()
    return {name: gradient.cpu() for name, gradient in step.grads.items()}


@pytest.mark.parametrize("method", K_SPARSE)
@pytest.mark.parametrize(("kind", "seed"), SEEDS)
def test_gradients_are_those_of_the_dense_formula(kind, method, seed):
    rng = np.random.default_rng(seed)
    latents = int(rng.integers(1, 40))
    k = {0: 1, 1: latents}.get(seed % 5, int(rng.integers(1, latents + 1)))
    n, width = 1 if seed % 7 == 0 else int(rng.integers(2, 60)), int(rng.integers(2, 10))
    n = min(n, 15) if kind is GpuStep and INTERPRETED else n
    source = "standardised" if kind is GpuStep else ("standardised", "layernorm")[seed % 2]
    decoder, encoder = ("unit_norm", "start", "held")[seed // 2 % 3], "frozen" if seed % 5 == 2 else "trained"
    config = asked(input=source, decoder=decoder, encoder=encoder, nested=0.7)
    m = model(method, width, latents, k, source, seed)
    if seed % 6 == 0:
        with torch.no_grad():
            m.b_enc -= 100  # every latent negative
    dead = torch.from_numpy(rng.random(latents) < 0.4) if seed % 3 else torch.zeros(latents, dtype=torch.bool)
    x = torch.from_numpy(rng.standard_normal((n, width)))
    count = (0, 69, 70, 99)[seed % 4]  # of 100 steps
    expected = expected_gradients(m, x, dead, config, nested=count < 70)
    expected_loss = float(dense_loss(m, x, dead, config, nested=count < 70).detach())

    step = step_of(kind, m, config, dead)
    step.count = count
    if seed % 4 == 0:  # several chunks, the last one short
        step.rows = 7
    got = gradients_of(step, x)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-11, msg=name)
    assert float(step.report()["loss"]) == pytest.approx(expected_loss, rel=1e-6)


@pytest.mark.parametrize("kind", [SparseStep, GPU])
@pytest.mark.parametrize("method", K_SPARSE)
def test_equal_latents_are_taken_in_order(method, kind):
    m = model(method, 4, 12, 3)
    with torch.no_grad():  # latents 0..5 are the same one, and more tokens want it than may have it
        m.W_enc[:6] = m.W_enc[0]
        m.b_enc[:6] = 3.0
    x = torch.randn(20, 4, dtype=torch.float64).repeat(2, 1)
    none = torch.zeros(12, dtype=torch.bool)
    expected = expected_gradients(m, x, none, asked())
    got = gradients_of(step_of(kind, m, asked()), x)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.cuda
@pytest.mark.parametrize("method", K_SPARSE)
@pytest.mark.parametrize(
    "config", [asked(), asked(input="layernorm", decoder="start", clip=None), asked(betas=(0.9, 0.999))]
)
def test_many_steps_of_all_ways_are_the_same(method, config):
    x = torch.randn(6, 8, 6, dtype=torch.float64)
    ends = []
    gpu = [GpuStep] if config.betas == (0.9, 0.999) else []  # ten seconds, where it is interpreted
    for kind in (SparseStep, AutogradStep, *gpu):
        step = step_of(kind, model(method, 6, 20, 3, config.input), config)
        step.dead_after, step.steps = 16.0, 6
        for batch in x:
            step(batch.to(step.silent.device), 0.01)
            step.report()  # on a GPU, it tells of dead latents
        step.close()
        ends.append(step.state())
    assert ends[0]["silent"].max() > 16  # AuxK was at work
    for end in ends[1:]:
        assert (ends[0]["silent"] == end["silent"]).all()
        for name in set(ends[0]) & set(end):
            torch.testing.assert_close(ends[0][name], end[name], rtol=1e-7, atol=1e-9, msg=name)
    if config.decoder == "unit_norm":
        torch.testing.assert_close(ends[0]["W_dec"].norm(dim=1), torch.ones(20, dtype=torch.float64))


@pytest.mark.cuda
@pytest.mark.parametrize("method", K_SPARSE)
def test_a_weight_that_is_no_number_shows_in_the_loss_on_a_gpu(method):
    m = model(method, 4, 12, 3).float()
    with torch.no_grad():
        m.b_enc[5] = torch.nan
    step = step_of(GpuStep, m, asked())
    gradients_of(step, torch.randn(8, 4))
    assert np.isnan(step.report()["loss"])


@pytest.mark.parametrize("precision", ["fp32", "bf16", INT8])
def test_threads_change_no_byte(precision):
    before = torch.get_num_threads()
    ends = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        m = model("topk", 16, 300, 5).float()
        step = SparseStep(m, asked(), 500.0, 9, precision)
        step.rows = 32
        for batch in torch.randn(9, 200, 16, generator=torch.Generator().manual_seed(1)):
            step(batch, 0.01)
        step.close()
        assert torch.get_num_threads() == threads  # given back
        ends.append(step.state())
    torch.set_num_threads(before)
    for name, value in ends[0].items():
        assert all(torch.equal(value, other[name]) for other in ends[1:]), name


def test_the_run_that_compiles_the_kernels_gives_the_bytes_of_later_ones(tmp_path):
    script = """
import hashlib, sys, torch, sae
x = torch.randn(2000, 48, generator=torch.Generator().manual_seed(0))
for precision in sys.argv[1:]:
    m = sae.train(x, sae.TrainConfig(5, 300, batch=200, precision=precision))
    print(hashlib.sha256(m.W_enc.numpy().tobytes() + m.W_dec.numpy().tobytes()).hexdigest())
"""
    ends, precisions = [], ["fp32", "bf16"] + ["int8"] * FAST_INT8
    for _ in range(2):
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", script, *precisions]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        ends.append(done.stdout)
    assert ends[0] == ends[1] and len(ends[0]) == 65 * len(precisions)


@NEEDS_INT8
@pytest.mark.parametrize("method", K_SPARSE)
@pytest.mark.parametrize("seed", range(12))
def test_int8_gives_the_gradients_of_numbers_that_it_holds(method, seed, monkeypatch):
    """Where nothing has to be rounded for the product, the same latents are chosen: errors alone are rounded."""
    rng = np.random.default_rng(seed)
    n, width, latents = (1, 5, 9)[seed % 3] * int(rng.integers(1, 40)), int(rng.integers(1, 70)), 1 + 37 * seed
    m = model(method, width, latents, int(rng.integers(1, latents + 1))).float()

    def whole(rows):  # a row's largest is 127 times a power of 2
        numbers = rng.integers(-126, 127, (rows, width)).astype(np.float32)
        numbers[:, rng.integers(width)] = 127
        return torch.from_numpy(numbers * 2.0 ** rng.integers(-9, -5, (rows, 1)).astype(np.float32))

    with torch.no_grad():
        m.W_enc.copy_(whole(latents))
        m.W_dec.copy_(m.W_dec.bfloat16())
        m.mean.zero_()
    dead = torch.from_numpy(rng.random(latents) < 0.4) if seed % 2 else torch.zeros(latents, dtype=torch.bool)
    x = whole(n)
    if seed % 4 < 2:
        monkeypatch.setattr(passes, "PRE_ACTIVATIONS", 1)  # blocks of 32 rows
    config = asked(auxk=4.0)
    exact = gradients_of(step_of(SparseStep, m, config, dead), x)
    rough = gradients_of(step_of(SparseStep, m, config, dead, "int8"), x)
    for name, gradient in exact.items():
        for rows in [dead, ~dead] if len(gradient) == latents else [slice(None)]:
            error = (rough[name][rows] - gradient[rows]).norm()
            assert error <= 0.01 * gradient[rows].norm(), (name, float(error))


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        (SparseStep, "bf16"),
        pytest.param(SparseStep, "int8", marks=NEEDS_INT8),
        pytest.param(GpuStep, "bf16", marks=pytest.mark.cuda),
    ],
)
@pytest.mark.parametrize("method", K_SPARSE)
def test_rounded_products_give_nearly_the_gradients_of_exact_ones(method, kind, precision):
    m = model(method, 32, 300, 4).float()
    x = torch.randn(60, 32, generator=torch.Generator().manual_seed(1))
    exact = gradients_of(step_of(SparseStep, m, asked()), x)
    rough = gradients_of(step_of(kind, m, asked(), precision=precision), x)
    for name, gradient in exact.items():
        error = (rough[name] - gradient).norm() / gradient.norm()
        assert 0 < error < 0.15, (name, float(error))


def test_jumprelu_slopes_are_the_papers():
    torch.manual_seed(0)
    width = autograd._BANDWIDTH
    pre = torch.linspace(0, 2, 401, dtype=torch.float64)[:, None].repeat(1, 3).requires_grad_()
    threshold = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(401, 3, dtype=torch.float64)
    z, active = autograd._Jump.apply(pre, threshold)
    torch.testing.assert_close(z, torch.where(pre > threshold, pre, 0.0))
    assert float(active.detach()) == float((pre > threshold).sum())
    ((z * weight).sum() + 0.3 * active).backward()
    near = (pre - threshold).detach().abs() < width / 2
    expected = -(near * (threshold.detach() * weight + 0.3)).sum(0) / width
    torch.testing.assert_close(threshold.grad, expected)
    torch.testing.assert_close(pre.grad, weight * (pre.detach() > threshold.detach()))


@pytest.mark.parametrize("method", METHODS)
def test_each_method_gets_the_fastest_step_that_it_has(method, monkeypatch):
    m, config = model(method, 4, 8, 2), sae.TrainConfig(2, 8, method, precision="fp32")

    def kind():
        step = loop.fastest_step(m, config, 1000, 10)
        step.close()
        return type(step)

    assert kind() is (SparseStep if method in (*K_SPARSE, "archetypal") else AutogradStep)
    monkeypatch.setattr(loop, "SparseStep", None)  # as without numba
    assert kind() is AutogradStep


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("SparseStep", "fp32"), pytest.param("SparseStep", "int8", marks=NEEDS_INT8), ("AutogradStep", "fp32")],
)
def test_no_matrix_of_batch_times_latents_is_held(kind, precision):
    script = f"""
import torch, sae
from pathlib import Path
from sae.autoencoder import SAEConfig, SparseAutoencoder
from sae.training.autograd import AutogradStep
from sae.training.sparse import SparseStep
torch.set_num_threads(2)
rows, latents = 4096, 16384  # 256 MiB
step = {kind}(SparseAutoencoder(SAEConfig(16, latents, 8)), sae.TrainConfig(8, latents), 1e12, 10, {precision!r})
step.model.W_enc.data.normal_()
step.model.W_dec.data.normal_()
step(torch.randn(256, 16), 1e-3)
def peak():
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
before = peak()
step(torch.randn(rows, 16), 1e-3)
step.close()
print((peak() - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 110  # MiB
