"""dictionary_learning: its trainSAE with its TopKTrainer, on an iterator of activations.

From its documentation: `normalize_activations` (one factor so that E‖x‖² = 1) and decay over the last fifth, as in its
demonstration; on a GPU bfloat16 autocast, for which it has no path on a CPU. Defaults else: Adam at 2e-4/√(F/2¹⁴),
b_dec starts at the first batch's geometric median, decoder of norm 1, AuxK 1/32.
"""

from __future__ import annotations

from pathlib import Path

import torch
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from protocol import Job, Trained, asked_for, bf16_is_fast, serve

_DTYPES = {"float32": torch.float32, "bfloat16 autocast": torch.bfloat16}


class ShortRunTrainer(TopKTrainer):
    """Its trainer, with the number of tokens after which a latent is dead as an argument."""

    def __init__(self, dead_after: int, **settings: object):
        super().__init__(**settings)
        self.dead_feature_threshold = dead_after


def train(job: Job) -> Trained:
    asked = job.settings
    folder = Path(asked.out) / "dictionary_learning"
    dead_after = job.cut(10_000_000, job.tokens)
    trainer = {
        "trainer": ShortRunTrainer,
        "dead_after": dead_after,
        "steps": job.steps,
        "activation_dim": job.width,
        "dict_size": asked.latents,
        "k": asked.k,
        "layer": 0,  # for its records, as is the next
        "lm_name": "",
        "lr": asked.lr,
        "warmup_steps": job.cut(1000, job.steps),
        "decay_start": int(0.8 * job.steps),
        "seed": asked.seed,
        "device": asked.device,
    }
    trainSAE(
        data=job.batches(),
        trainer_configs=[trainer],
        steps=job.steps,
        save_dir=str(folder),
        normalize_activations=True,
        device=asked.device,
        autocast_dtype=_DTYPES[job.variant],
    )
    # trainSAE returns nothing; what it saves takes and gives the units of x.
    model = AutoEncoderTopK.from_pretrained(folder / "trainer_0" / "ae.pt", device=asked.device)
    lr = asked.lr or 2e-4 / (asked.latents / 2**14) ** 0.5
    recipe = (
        f"`trainSAE` with `TopKTrainer`, {job.variant}: scaled to E‖x‖² = 1, b_dec starts at the median, Adam at "
        f"{lr:.2g} with warm-up and decay over the last fifth, AuxK 1/32, a latent is dead after {dead_after:,} tokens"
    )
    return Trained(lambda x: model(x, output_features=True), model.decoder.weight.T, recipe)


if __name__ == "__main__":
    device = asked_for()["device"]
    serve(train, "dictionary-learning", list(_DTYPES) if device != "cpu" and bf16_is_fast(device) else ["float32"])
