"""An interrupted training goes on to the same bytes; a checkpoint that cannot be used is explained and kept."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

import sae
from sae.autoencoder import METHODS
from sae.errors import InputError
from sae.store import Activations
from sae.training import checkpoint as checkpoints
from sae.training.sparse import SparseStep

CONFIG = sae.TrainConfig(k=3, latents=64, epochs=2, batch=500)
_INTERRUPTED = """
import sys
import numpy as np, torch, sae
torch.set_num_threads(1)
x = np.load(sys.argv[1])
m = sae.train(x, sae.TrainConfig(k=3, latents=96, epochs=8, batch=200), seed=5, log=sys.argv[2] + "/log.csv",
              checkpoint=sys.argv[2] + "/checkpoint.safetensors", checkpoint_every=0.05)
m.save(sys.argv[2])
"""


def test_killed_at_any_moment_and_started_again_it_gives_the_same_bytes(data, tmp_path):
    np.save(tmp_path / "x.npy", data[0])

    def start(folder):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", _INTERRUPTED, str(tmp_path / "x.npy"), str(folder)]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr.read()
    assert not (tmp_path / "whole/checkpoint.safetensors").exists()

    folder, resumed = tmp_path / "killed", 0
    checkpoint = folder / "checkpoint.safetensors"
    seen = None
    for _ in range(2):
        run = start(folder)
        deadline = time.monotonic() + 60
        while run.poll() is None and time.monotonic() < deadline:  # until it has gone beyond what it started from
            now = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
            if now is not None and now != seen:
                break
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.1))
        if run.poll() is None:
            os.kill(run.pid, signal.SIGKILL)
            resumed += 1
        run.wait()
        seen = checkpoint.stat().st_mtime_ns if checkpoint.exists() else seen
        run.stderr.close()
    assert resumed  # at least once it was killed before its end
    assert not (folder / "sae.safetensors").exists() or resumed < 2
    last = start(folder)
    assert last.wait() == 0, last.stderr.read()
    for name in ("sae.safetensors", "log.csv"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not checkpoint.exists()


class Ending(Activations):
    """Activations that end the process instead of giving batch number `end`."""

    end, given = 7, 0

    def shuffled(self, *arguments):
        for batch in super().shuffled(*arguments):
            if self.given == self.end:
                raise KeyboardInterrupt
            self.given += 1
            yield batch


def stopped_early(x, checkpoint, at=7, config=CONFIG):
    """Runs until step `at`, as if the process ended there."""
    ending = Ending.of(x)
    ending.end = at
    with pytest.raises(KeyboardInterrupt):
        sae.train(ending, config, checkpoint=checkpoint, checkpoint_every=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [1, 7, 10, 19])
def test_every_method_resumes_to_the_same_bytes(data, tmp_path, method, at):
    x, checkpoint = data[0][:4750], tmp_path / "c.safetensors"  # the last batch of an epoch is short
    config = replace(CONFIG, method=method)
    whole = sae.train(x, config, log=tmp_path / "whole.csv")
    stopped_early(x, checkpoint, at, config)
    resumed = sae.train(x, config, log=tmp_path / "log.csv", checkpoint=checkpoint)
    assert (tmp_path / "log.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_resumed_run_does_only_the_rest(data, tmp_path, monkeypatch):
    x, checkpoint = data[0][:5000], tmp_path / "c.safetensors"
    stopped_early(x, checkpoint)
    done = []
    step = SparseStep.__call__
    monkeypatch.setattr(SparseStep, "__call__", lambda self, *given: (done.append(self.count), step(self, *given)))
    sae.train(x, CONFIG, checkpoint=checkpoint)
    assert done == list(range(7, 20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.1}, "made with lr None, now it is 0.1; delete it"),
        ({"k": 4}, "made with k 3, now it is 4"),
        ({"seed": 1}, "made with seed 0, now it is 1"),
        ({"x": 1}, "made with data"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(data, tmp_path, change, message):
    checkpoint = tmp_path / "c.safetensors"
    stopped_early(data[0][:5000], checkpoint)
    before = checkpoint.read_bytes()
    first, seed = 5000 * change.pop("x", 0), change.pop("seed", 0)
    with pytest.raises(InputError, match=message):
        sae.train(data[0][first : first + 5000], replace(CONFIG, **change), seed, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before


def test_a_damaged_checkpoint_is_named(data, tmp_path):
    checkpoint = tmp_path / "c.safetensors"
    stopped_early(data[0][:5000], checkpoint)
    whole = checkpoint.read_bytes()
    for content in (b"", b"nonsense" * 100, whole[:-1], whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:]):
        checkpoint.write_bytes(content)
        with pytest.raises(InputError, match="not a checkpoint that can be read; delete it"):
            sae.train(data[0][:5000], CONFIG, checkpoint=checkpoint)


def test_when_numbers_stop_being_finite_the_last_good_checkpoint_is_kept(data, tmp_path):
    checkpoint, x = tmp_path / "c.safetensors", data[0][:2500].copy()
    source = sae.Source(layer=9).measured(Activations.of(x))
    order = next(Activations.of(np.arange(2500.0)[:, None]).shuffled(2500, np.random.default_rng([0, 1, 0])))
    x[int(order[2200, 0])] = np.nan  # in the fifth batch
    with pytest.raises(InputError, match=r"layer 9 k 3, step 5: the loss is not finite.*last good state, step 4"):
        sae.train(x, CONFIG, source=source, checkpoint=checkpoint, checkpoint_every=0)
    state = load_file(checkpoint)
    assert state["count"] == 4 and all(value.isfinite().all() for value in state.values())


def test_checkpoints_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])

    def slow(*_arguments):
        clock[0] += 3.0

    monkeypatch.setattr(checkpoints, "write_arrays", slow)
    saved = checkpoints.Checkpoint(tmp_path / "c", {}, 30)

    class Step:
        count = 1

        def state(self):
            return {}

    writing = 0
    while clock[0] < 10_000:
        clock[0] += 1
        if saved.due():
            before = clock[0]
            saved.write(Step(), ())
            writing += clock[0] - before
    assert 0 < writing < 0.02 * clock[0]
