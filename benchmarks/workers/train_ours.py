"""This project's trainer, through its public function, with its default recipe."""

from __future__ import annotations

from protocol import Job, Trained, serve

import sae


def train(job: Job) -> Trained:
    asked = job.settings
    config = sae.TrainConfig(
        asked.k, asked.latents, epochs=job.epochs, batch=asked.batch, precision=asked.precision, lr=asked.lr
    )
    model = sae.train(job.x, config, asked.seed, asked.device)
    recipe = f"`sae.train`, default recipe, precision {model.record['precision']}: centred and scaled, Adam, AuxK 1/32"
    return Trained(lambda x: (model(x), model.encode(x)), model.W_dec, recipe)


if __name__ == "__main__":
    serve(train, "sae-vit")
