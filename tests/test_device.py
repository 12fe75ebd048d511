"""Where to compute."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from small import NEEDS_INT8

import sae
from sae import device
from sae.errors import InputError
from sae.training.autograd import AutogradStep


@pytest.mark.cuda
def test_auto_is_the_best_there_is():
    found = device.resolve("auto").type
    assert found == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device.resolve("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu:0", "", "mps:1"])
def test_unknown_names_are_explained(name):
    with pytest.raises(InputError, match=f"device {name}: no such name"):
        sae.train(torch.ones(9, 2), sae.TrainConfig(1, 2), device=name)


def test_a_device_that_is_absent_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(InputError, match=f"device {name}: this machine has no"):
            device.resolve(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    assert device.resolve("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match=r"this machine has cuda:0\.\.1"):
        device.resolve("cuda:2")


@NEEDS_INT8
def test_products_of_integers_that_overflow_are_not_taken():
    """An older instruction, which users can hold oneDNN to, lets sums of pairs overflow."""
    script = "import torch; from sae import device; print(device.fast_int8(torch.device('cpu')))"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(("kind", "asked"), [("cuda", True), ("cpu", False)])
def test_deterministic_operations_are_asked_for_and_the_choice_before_given_back(kind, asked):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(ZeroDivisionError), device.deterministic(torch.device(kind)):
            assert torch.is_deterministic_algorithms_warn_only_enabled() is not asked
            assert torch.utils.deterministic.fill_uninitialized_memory is not asked
            raise ZeroDivisionError
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("wanted", [True, False])
def test_training_asks_for_deterministic_operations_in_its_steps(wanted, monkeypatch):
    plain, enabled = device.deterministic, []
    monkeypatch.setattr(device, "deterministic", lambda _target: plain(torch.device("cuda")))
    gradients = AutogradStep.gradients

    def noted(step, raw):
        enabled.append(torch.are_deterministic_algorithms_enabled())
        gradients(step, raw)

    monkeypatch.setattr(AutogradStep, "gradients", noted)
    sae.train(torch.randn(1000, 16), sae.TrainConfig(2, 64, "relu", batch=500, deterministic=wanted))
    assert enabled == [wanted] * 2 and not torch.are_deterministic_algorithms_enabled()
