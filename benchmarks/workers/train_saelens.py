"""SAELens: its SAETrainer, which takes any iterator of activations.

From its documentation: `normalize_activations="expected_average_only_in"` (one factor so that E‖x‖ = √d; it does not
centre, and starts b_dec at 0), Adam at 3e-4, decay over the last fifth. Its other defaults are kept: decoder norms
start at 0.1, latents are compared as if the decoder were normalised, AuxK has weight 1. It documents two faster ways:
bfloat16 autocast and sparse codes. (`torch.compile`, its third, was slower on a CPU: 5.0 k against 6.2 k tokens/s.)
Option `covariance_whitening`: the only one of its normalisations for TopK that centres.
"""

from __future__ import annotations

import torch
from protocol import Job, Trained, bf16_is_fast, device_asked_for, serve
from sae_lens import LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig

_LR = 3e-4


def train(job: Job) -> Trained:
    asked = job.settings
    lr = asked.lr or _LR
    normalisation = asked.option or "expected_average_only_in"
    model = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=job.width,
            d_sae=asked.latents,
            k=asked.k,
            device=asked.device,
            normalize_activations=normalisation,
            use_sparse_activations=job.variant == "sparse codes",
        )
    )
    config = SAETrainerConfig(
        total_training_samples=job.tokens,
        train_batch_size_samples=asked.batch,
        lr=lr,
        lr_end=lr / 10,
        lr_decay_steps=job.steps // 5,
        device=asked.device,
        autocast=job.variant == "bfloat16 autocast",
        dead_feature_window=job.cut(1000, job.steps),
        n_batches_for_norm_estimate=job.cut(1000, job.steps),
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(config, model, job.batches()).fit()
    model.eval()
    recipe = (
        f"`SAETrainer`, {job.variant}: `{normalisation}`, Adam at {lr:.2g} with decay over the last fifth, "
        f"AuxK 1, a latent is dead after {config.dead_feature_window} steps"
    )

    def reconstruct(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = model.encode(x)
        return model.decode(latents), latents.to_dense()

    return Trained(reconstruct, model.W_dec, recipe)


if __name__ == "__main__":
    fast = ["bfloat16 autocast"] if bf16_is_fast(device_asked_for()) else []
    serve(train, "sae-lens", ["float32", "sparse codes", *fast])
