"""This project's trainer, through its public function, with its default recipe."""

from __future__ import annotations

from protocol import Job, Trained, serve

import sae


def train(job: Job) -> Trained:
    asked = job.settings
    model = sae.train(
        job.x,
        k=asked.k,
        latents=asked.latents,
        method="topk",
        seed=asked.seed,
        epochs=job.epochs,
        batch=asked.batch,
        device=asked.device,
        precision=asked.precision,
        recipe=sae.Recipe(lr=asked.lr),
    )
    recipe = f"`sae.train`, default recipe, precision {model.record['precision']}: centred and scaled, Adam, AuxK 1/32"
    return Trained(lambda x: (model(x), model.encode(x)), model.W_dec, recipe)


if __name__ == "__main__":
    serve(train, "sae-vit")
