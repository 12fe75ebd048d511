"""Overcomplete: its train_sae with its TopKSAE, as in its README, and the loss that its page on dead codes recommends.

Adam at 5e-4 without a schedule, gradient clipped at 1, its default linear encoder, decoder of norm 1, inputs as they
are: it recommends no normalisation and has no decoder bias. Logging is off, which is faster. On a GPU it has a
mixed-precision loop too.
"""

from __future__ import annotations

from itertools import islice

import torch
from overcomplete.sae import TopKSAE, train_sae
from overcomplete.sae.train import train_sae_amp
from protocol import Job, Trained, asked_for, serve

_LR = 5e-4
_REVIVE = 1e-3
_LOOPS = {"float32": train_sae, "mixed precision": train_sae_amp}


def criterion(
    x: torch.Tensor, x_hat: torch.Tensor, before: torch.Tensor, latents: torch.Tensor, dictionary: torch.Tensor
) -> torch.Tensor:
    """Mean squared error, less a little of the pre-activations of latents that fire nowhere in the batch."""
    silent = ~(latents > 0).any(0)
    return (x - x_hat).square().mean() - _REVIVE * (before * silent).mean()


def train(job: Job) -> Trained:
    asked = job.settings
    lr = asked.lr or _LR
    model = TopKSAE(job.width, nb_concepts=asked.latents, top_k=asked.k, device=asked.device)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    batches = islice(job.batches(), job.steps)
    _LOOPS[job.variant](model, batches, criterion, optimiser, nb_epochs=1, monitoring=0, device=asked.device)
    model.eval()
    recipe = f"`train_sae`, {job.variant}: inputs as they are, Adam at {lr:.2g}, silent latents pushed up"

    def reconstruct(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _before, latents, x_hat = model(x)[0:3]
        return x_hat, latents

    return Trained(reconstruct, model.get_dictionary(), recipe)


if __name__ == "__main__":
    serve(train, "Overcomplete", ["float32"] if asked_for()["device"] == "cpu" else list(_LOOPS))
