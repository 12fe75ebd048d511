"""sparsify: its whole Trainer, which wants a transformer and text.

It gets a stand-in for both: "tokens" are row numbers, and the one layer of the "model" gives these rows. So the loop,
its bookkeeping and its optimiser (signum, schedule-free: there is no schedule to fit) are its own. Defaults all over:
b_dec starts at the first batch's mean, inputs are not scaled (its loss is relative to the variance), AuxK is off. It
documents `micro_acc_steps`, gradients summed over parts of a batch, to save memory; on a CPU that may also be faster.
On a GPU it takes bfloat16 and its Triton kernel by itself. Option `auxk`: AuxK on, with the weight of the paper that
it follows, 1/32 (arXiv 2406.04093).
"""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import torch
from protocol import Job, Trained, asked_for, serve
from torch import nn

if asked_for()["device"] == "cpu":
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read when it is imported; its kernel needs a GPU

from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer

_PARTS = {"whole batches": 1, "batches in 8 parts": 8}


class Rows(nn.Module):
    """As much of a transformer as sparsify's Trainer touches."""

    def __init__(self, x: torch.Tensor):
        super().__init__()
        self.x, self.device = x, x.device
        self.layer = nn.Identity()  # the Trainer reads activations where this gives them out
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}

    @property
    def base_model(self) -> Rows:
        return self

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.layer(self.x[input_ids])


def train(job: Job) -> Trained:
    asked = job.settings
    folder = Path(asked.out) / "sparsify"
    auxk = 1 / 32 if asked.option == "auxk" else 0.0
    config = TrainConfig(
        SparseCoderConfig(num_latents=asked.latents, k=asked.k),
        batch_size=1,  # a "sequence" is a batch
        micro_acc_steps=_PARTS[job.variant],
        lr=asked.lr,
        auxk_alpha=auxk,
        dead_feature_threshold=job.cut(10_000_000, job.tokens),
        hookpoints=["layer"],
        init_seeds=[asked.seed],
        log_to_wandb=False,
        save_dir=str(folder),
    )
    sequences = [{"input_ids": order} for order in islice(job.orders(), job.steps)]
    Trainer(config, sequences, Rows(job.x)).fit()
    # What it saves is the optimiser's average of the weights; in memory are the weights before averaging.
    model = SparseCoder.load_from_disk(folder / "unnamed" / "layer", device=asked.device)
    lr = asked.lr or 5e-3 / (asked.latents / 2**14) ** 0.5
    revival = "AuxK 1/32" if auxk else "no AuxK (its default)"
    recipe = f"`Trainer`, {job.variant}: b_dec starts at the mean, signum (schedule-free) at {lr:.2g}, {revival}"

    def reconstruct(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = model(x)
        latents = x.new_zeros(len(x), asked.latents)
        return out.sae_out, latents.scatter_(1, out.latent_indices, out.latent_acts.to(x.dtype))

    return Trained(reconstruct, model.W_dec, recipe)


if __name__ == "__main__":
    serve(train, "eai-sparsify", list(_PARTS))
