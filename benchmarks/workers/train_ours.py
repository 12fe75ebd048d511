"""This project's trainer, through its public function, with its default recipe.

The option is a method, also with changed settings, as YAML has them: `matryoshka:decay=0.5,lr=0.001`.
"""

from __future__ import annotations

import yaml
from protocol import Job, Trained, serve

import sae


def train(job: Job) -> Trained:
    asked = job.settings
    method, _, changes = (asked.option or "topk").partition(":")
    changed = yaml.safe_load("{" + changes.replace("=", ": ") + "}")
    if {"epochs", "batch", "k", "latents"} & {*changed}:
        raise ValueError(f"{asked.option}: samples, batch, k and latents are the benchmark's own")
    settings = {"epochs": job.epochs, "batch": asked.batch, "precision": asked.precision, "lr": asked.lr} | changed
    model = sae.train(job.x, sae.TrainConfig(asked.k, asked.latents, method, **settings), asked.seed, asked.device)
    recipe = f"`sae.train`, {f'default recipe but {changes}' if changes else 'default recipe'}, precision "
    recipe += f"{model.record['precision']}: centred and scaled, Adam, AuxK 1/32"
    return Trained(lambda x: (model(x), model.encode(x)), model.W_dec, recipe)


if __name__ == "__main__":
    serve(train, "sae-vit")
