"""SAELens: its SAETrainer, which takes any iterator of activations.

From its documentation: `normalize_activations="expected_average_only_in"` (one factor so that E‖x‖ = √d; it does not
centre, and starts b_dec at 0), Adam at 3e-4, decay over the last fifth. Its other defaults are kept: decoder norms
start at 0.1, latents are compared as if the decoder were normalised, AuxK has weight 1. It documents two faster ways:
bfloat16 autocast and sparse codes. (`torch.compile`, its third, was slower on a CPU: 5.0 k against 6.2 k tokens/s.)
Option `covariance_whitening`: the only one of its normalisations for TopK that centres.

Options `batchtopk`, `matryoshka`, `jumprelu`, `standard`: the SAEs of SynthSAEBench, with its authors' settings for the
first two: inputs as they are, a constant rate of 3e-4. They tune the weights of JumpReLU's and L1's penalties during
the run, which SAELens itself does not. So here JumpReLU has SAELens's loss with a target for L0 and its loss by
pre-activations in place of their AuxK, and L1 the weight that they start from.
"""

from __future__ import annotations

from typing import Any

import sae_lens
import torch
from protocol import Job, Trained, asked_for, bf16_is_fast, serve
from sae_lens.config import LoggingConfig, SAETrainerConfig

_LR = 3e-4


def train(job: Job) -> Trained:
    asked = job.settings
    lr = asked.lr or _LR
    common = {"d_in": job.width, "d_sae": asked.latents, "device": asked.device}
    sparse = job.variant == "sparse codes"
    made = _of_synthsaebench(asked.option, asked.k, job.steps)
    if made is None:
        normalisation = asked.option or "expected_average_only_in"
        settings = {"k": asked.k, "normalize_activations": normalisation, "use_sparse_activations": sparse}
        recipe = f"`{normalisation}`, Adam at {lr:.2g} with decay over the last fifth, AuxK 1, "
        made = ("TopK", settings)
        schedule = {"lr_end": lr / 10, "lr_decay_steps": job.steps // 5}
    else:
        recipe, schedule = f"{made[0]} with {made[1]}, Adam at a constant {lr:.2g}, ", {"lr_end": lr}
    name, settings = made
    model = getattr(sae_lens, f"{name}TrainingSAE")(getattr(sae_lens, f"{name}TrainingSAEConfig")(**common, **settings))
    config = SAETrainerConfig(
        total_training_samples=job.tokens,
        train_batch_size_samples=asked.batch,
        lr=lr,
        device=asked.device,
        autocast=job.variant == "bfloat16 autocast",
        dead_feature_window=job.cut(1000, job.steps),
        n_batches_for_norm_estimate=job.cut(1000, job.steps),
        logger=LoggingConfig(log_to_wandb=False),
        **schedule,
    )
    sae_lens.SAETrainer(config, model, job.batches()).fit()
    model.eval()
    recipe = f"`SAETrainer`, {job.variant}: {recipe}a latent is dead after {config.dead_feature_window} steps"

    def reconstruct(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = model.encode(x)
        return model.decode(latents), latents.to_dense()

    return Trained(reconstruct, model.W_dec, recipe)


def _of_synthsaebench(option: str | None, k: int, steps: int) -> tuple[str, dict[str, Any]] | None:
    """Returns the name of SAELens's class and its settings; None: the option is none of the benchmark's."""
    return {
        "batchtopk": ("BatchTopK", {"k": k}),
        "matryoshka": (
            "MatryoshkaBatchTopK",
            {"k": k, "matryoshka_widths": [128, 512, 2048], "use_matryoshka_aux_loss": True},
        ),
        "jumprelu": (
            "JumpReLU",
            {
                "normalize_activations": "expected_average_only_in",
                "jumprelu_sparsity_loss_mode": "quadratic",
                "target_l0": float(k),
                "jumprelu_bandwidth": 2.0,
                "jumprelu_init_threshold": 0.5,
                "decoder_init_norm": 0.5,
                "pre_act_loss_coefficient": 3e-6,
            },
        ),
        "standard": ("Standard", {"l1_coefficient": 2.0, "l1_warm_up_steps": steps // 3}),
    }.get(option or "")


if __name__ == "__main__":
    asked = asked_for()
    sparse = [] if _of_synthsaebench(asked["option"], asked["k"], 0) else ["sparse codes"]  # of TopK alone
    serve(train, "sae-lens", ["float32", *sparse, *(["bfloat16 autocast"] if bf16_is_fast(asked["device"]) else [])])
