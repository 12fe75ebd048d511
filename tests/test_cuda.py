"""The whole chain on a CUDA device, against the same on the CPU. Each kind of training step: see test_step."""

from dataclasses import replace

import numpy as np
import pytest
import small
import timm
import torch

import sae
from sae import extraction, vit
from sae.autoencoder import METHODS, SAEConfig, SparseAutoencoder
from sae.errors import shortage
from sae.evidence import fidelity, judge
from sae.shards import Part
from sae.training import checkpoint, loop, step

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CONFIG = sae.TrainConfig(k=3, latents=96, epochs=6, batch=512, lr=3e-3)
KINDS = [*METHODS, "soft_frozen", "frozen_encoder"]


def weights(model):
    return {name: value.cpu() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("source", ["standardised", "layernorm"])
@pytest.mark.parametrize("method", KINDS)
def test_an_sae_is_as_good_as_one_from_the_cpu(data, drawn, method, source):
    new, config = drawn[0][20_000:], replace(CONFIG, method=method, input=source)
    here, there = (sae.train(data[0], config, device=device) for device in ("cpu", "cuda"))
    assert there.W_dec.device.type == "cuda" and there.record["device"] == "cuda"
    fvu = [fidelity.fvu(new, m.decode(m.encode(new))) for m in (here, there)]
    assert fvu[1] < 1.15 * fvu[0] + 0.01
    active = [(m.encode(new) > 0).sum(1).mean() for m in (here, there)]
    assert active[1] == pytest.approx(active[0], rel=0.05)


@pytest.mark.parametrize("method", KINDS)
def test_in_float32_the_first_steps_are_the_cpus(data, method):
    config = replace(CONFIG, method=method, precision="fp32", epochs=1, dead_after=0.2)
    here, there = (sae.train(data[0][:4096], config, device=device) for device in ("cpu", "cuda"))
    for name, value in weights(here).items():
        error = (weights(there)[name] - value).norm() / value.norm().clamp_min(1e-6)
        assert error < 0.02, (name, float(error))


@pytest.mark.parametrize("method", KINDS)
def test_an_interrupted_run_gives_the_bytes_of_an_uninterrupted_one(data, method, tmp_path, monkeypatch):
    # More steps than the log has rows: checkpoints may not change what a step knows of dead latents.
    x = data[0][:6000]
    config = replace(CONFIG, method=method, deterministic=True, epochs=3, batch=32, dead_after=0.05)
    whole = sae.train(x, config, device="cuda")

    class Interrupted(Exception):
        pass

    def interrupt(self, *arguments):
        write(self, *arguments)
        if self.step >= 300:  # of 564
            raise Interrupted

    write = checkpoint.Checkpoint.write
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(checkpoint.Checkpoint, "write", interrupt)
        sae.train(x, config, device="cuda", checkpoint=tmp_path / "state.safetensors", checkpoint_every=0)
    resumed = sae.train(x, config, device="cuda", checkpoint=tmp_path / "state.safetensors")
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name


def test_activations_that_do_not_fit_into_its_memory_are_fed_from_the_host(data, monkeypatch):
    x, config = data[0][:6000].astype(np.float16), replace(CONFIG, deterministic=True, epochs=2)
    resident = sae.train(x, config, device="cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 0))
    fed = sae.train(x, config, device="cuda")
    for name, value in weights(resident).items():
        assert torch.equal(weights(fed)[name], value), name


def test_a_batch_too_large_for_its_memory_is_explained(data, tmp_path):
    config = replace(CONFIG, latents=2**17, batch=20_000, method="batchtopk")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.05)
    try:
        with pytest.raises(torch.OutOfMemoryError) as caught:
            sae.train(data[0], config, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "training.batch" in shortage(caught.value, tmp_path)


@pytest.mark.parametrize("latents", [1, 5, 96, 3000, 20_000])
def test_rows_of_any_size_are_chosen_from(latents):
    """Of numbers with many ties, also where too few are positive."""
    from sae.training.gpu import GpuStep

    for seed, k in enumerate((1, min(latents, 7), min(latents, 300))):
        torch.manual_seed(seed)
        x = torch.randn(300, 24)
        ends = []
        for device in ("cpu", "cuda"):
            m = SparseAutoencoder(SAEConfig(24, latents, k))
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():  # multiples of an eighth: every product is exact
                m.W_enc.copy_(torch.randint(-3, 4, (latents, 24), generator=generator) / 8)
                m.W_dec.copy_(torch.randn(latents, 24, generator=generator))
            config = sae.TrainConfig(k, latents)
            m = m.to(device)
            kind = GpuStep if device == "cuda" else loop.SparseStep
            one = kind(m, config, 1e12, 10, "fp32")
            one.gradients((x * 8).round().div(8).to(device))
            one.close()
            ends.append({name: grad.cpu() for name, grad in one.grads.items()})
        for name, value in ends[0].items():
            torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-5 * float(value.abs().max()), msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_extraction_gives_the_cpus_tokens(tmp_path, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 64, 64, 3), np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    model = vit.load("vit_tiny_patch16_224", "random", 64)
    extraction.extract(model, tmp_path / "pixels.npy", [Part(tmp_path / "cpu.npy", range(70))], 5)
    extraction.extract(
        model.to("cuda"), tmp_path / "pixels.npy", [Part(tmp_path / "cuda.npy", range(70))], 5, dtype=dtype
    )
    here, there = (np.load(tmp_path / f"{device}.npy").astype(float) for device in ("cpu", "cuda"))
    assert np.abs(here - there).mean() / np.abs(here).mean() < (2e-3 if dtype == "float32" else 2e-2)


def test_a_small_experiment_finds_the_cpus_evidence(tmp_path):
    """Extraction, facts, training, measurement with splicing and removal, and evidence, as the rules do it."""
    manifest = small.noise(tmp_path, 60, label="n02123045")
    found = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3).eval().to(device)
        folder = tmp_path / device
        folder.mkdir()
        (folder / "pixels.npy").symlink_to(tmp_path / "pixels.npy")
        given = small.setup(folder, model, manifest, 1, "patches", 32, ks=[1, 4], latents=5, images=2)
        config = sae.TrainConfig(4, 32, epochs=20, batch=64, precision="fp32", deterministic=True)
        x = given.layer.tokens("patches", given.layer.train)
        origin = sae.training.Source(1, "patches", given.layer.statistics)
        saes = {seed: sae.train(x, config, seed, device, origin) for seed in (0, 1)}
        measured, tables = small.judged(given, saes, 0, judge.Limits(5, 3, 2))
        found[device] = measured.metrics, tables
    here, there = found["cpu"][0], found["cuda"][0]
    assert here.keys() == there.keys()
    for name in ("fvu", "l0", "cosine", "ce_clean", "ce_spliced"):
        if name in here:
            assert there[name] == pytest.approx(here[name], rel=0.05, abs=0.02), name
    tables = [{name: list(table.columns) for name, table in found[device][1].items()} for device in found]
    assert tables[0] == tables[1]


def test_replays_do_what_calls_do():
    from sae.training.replay import Replay

    total = torch.zeros(3, device="cuda")
    replay = Replay(lambda rows: total.add_(rows.sum(0)), torch.device("cuda"))
    matrix = torch.randn(100, 3, device="cuda")
    expected = torch.zeros(3, device="cuda")
    for i in range(12):
        numbers = torch.arange(i, i + (5 if i % 3 else 7), device="cuda")
        replay(step.Rows(matrix, numbers))
        expected += matrix[numbers].sum(0)
    torch.testing.assert_close(total, expected)
