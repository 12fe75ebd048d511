"""Where to compute."""

import pytest
import torch

from sae import device
from sae.errors import InputError


def test_auto_is_the_best_there_is():
    found = device.resolve("auto").type
    assert found == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device.resolve("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu:0", "", "mps:1"])
def test_unknown_names_are_explained(name):
    with pytest.raises(InputError, match="no such name"):
        device.resolve(name)


def test_a_device_that_is_absent_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(InputError, match=f"device {name}: this machine has no"):
            device.resolve(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.resolve("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match=r"this machine has cuda:0\.\.1"):
        device.resolve("cuda:2")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu_matches_the_cpu():
    import sae

    x = torch.randn(5000, 32, generator=torch.Generator().manual_seed(0)).numpy()
    errors = [
        float(((m.decode(m.encode(x)) - x) ** 2).mean())
        for m in (
            sae.train(x, k=4, latents=64, epochs=2, batch=500, device=d, precision="fp32") for d in ("cpu", "cuda")
        )
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)
