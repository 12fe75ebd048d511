"""The SAE put back into the ViT: what the model still sees through the reconstruction.

A head may hold several groups of outputs (a softmax per attribute, see `vit.class_names`). Agreement, cross-entropy
and accuracy are means over the groups; KL is their sum, the divergence of the joint prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from sae import vit
from sae.activations import Activations
from sae.autoencoder import SparseAutoencoder
from sae.evidence import fidelity
from sae.images import HELD_OUT, shard, used


def sample(manifest: pd.DataFrame, images: int) -> list[int]:
    """Returns the ids of at most `images` held-out images, a random choice that new images hardly change."""
    held_out = used(manifest, HELD_OUT)
    return sorted(held_out.sort_values("sha256")["id"].head(images).tolist())


@torch.inference_mode()
def predict(
    model: nn.Module, shards: Sequence[str | Path], manifest: pd.DataFrame, ids: Sequence[int], batch: int = 64
) -> np.ndarray:
    """Returns the untouched model's outputs for the images `ids`, float32 [len(ids), outputs].

    Args:
        shards: all pixel shards in order, .npy, uint8 [images, height, width, 3].
        manifest: what the shards were made from.
    """
    prepare, parts = vit.normalise(model), []
    with tqdm(total=len(ids), desc="untouched model", unit="image") as progress:
        for index, path in enumerate(shards):
            pixels = np.load(path, mmap_mode="r")
            places = np.flatnonzero(shard(manifest, index, len(shards))["id"].isin(ids))
            for first in range(0, len(places), batch):
                chosen = places[first : first + batch]
                parts.append(model(prepare(pixels[chosen])).float().cpu().numpy())
                progress.update(len(chosen))
    return np.concatenate(parts)


def describe(model: nn.Module, manifest: pd.DataFrame, ids: list[int], logits: np.ndarray) -> dict[str, Any]:
    """Returns the untouched model's facts: its geometry, and its accuracy per group over the images `ids`."""
    names = vit.class_names(model)
    truth = targets(manifest.set_index("id").loc[ids], names)
    return {
        "geometry": asdict(vit.geometry(model)),
        "parameters": sum(p.numel() for p in model.parameters()),
        "ids": ids,
        "accuracy": accuracy(logits, truth, names),
        "known_labels": {group: int((column >= 0).sum()) for group, column in zip(names, truth.T, strict=True)},
    }


def targets(manifest: pd.DataFrame, names: dict[str, list[str]]) -> np.ndarray:
    """Returns the head's right output per image and group, int64 [images, groups]; -1 where it is not known.

    The group `label` is compared with the last part of the image's label (a synset for ImageNet's head), any other
    group with the manifest's attribute of its name.
    """
    columns = []
    for group, values in names.items():
        place = {value: i for i, value in enumerate(values)}
        given = manifest[group] if group in manifest else pd.Series([None] * len(manifest))
        columns.append([place.get(str(text).split("/")[-1], -1) if pd.notna(text) else -1 for text in given])
    return np.array(columns, np.int64).reshape(len(names), len(manifest)).T


def accuracy(logits: np.ndarray, truth: np.ndarray, names: dict[str, list[str]]) -> dict[str, float]:
    """Returns the share of right predictions per group, over the images whose class is known; groups with any."""
    found: dict[str, float] = {}
    if not names:
        return found
    for part, column, group in zip(_groups(torch.from_numpy(logits), names), truth.T, names, strict=True):
        known = column >= 0
        if known.any():
            found[group] = float((part.argmax(1).numpy() == column)[known].mean())
    return found


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    sae: SparseAutoencoder,
    x: Activations,
    clean: np.ndarray,
    truth: np.ndarray,
    mean: np.ndarray,
    batch: int = 64,
) -> dict[str, float | str]:
    """Returns how the model's output changes when the SAE's reconstruction, or an ablation, takes the tokens' place.

    Args:
        x: held-out images with *all* tokens at the SAE's layer, from which the forward pass goes on.
        clean: the untouched model's outputs, [images, outputs].
        truth: from `targets`, [images, groups].
        mean: the train set's mean vector [d] of the SAE's tokens, for mean ablation.

    Returns:
        top1_agreement: share of images and groups whose most likely class stays the same. top1_agreement_mean_ablated:
        what agreement is worth here. kl: nats, from the untouched model. output_cosine: mean cosine of the outputs
        (the features, where the model has no head). ce_clean, ce, ce_mean_ablated, ce_zero_ablated: cross-entropy,
        against the true classes where any is known (ce_target: label), else against the untouched model's own
        predictions (ce_target: prediction). ce_recovered_mean, ce_recovered_zero: see `fidelity.recovered`. accuracy,
        accuracy_clean: where true classes are known, else NaN. A model without a head has NaN in all but
        output_cosine.
    """
    geometry, names = vit.geometry(model), vit.class_names(model)
    chosen, layer, device = geometry.select(sae.config.tokens), sae.config.layer, sae.b_dec.device
    replacement = {"mean": torch.from_numpy(mean).float().to(device), "zero": torch.zeros(x.width, device=device)}
    outputs: dict[str, list[torch.Tensor]] = {"sae": [], "mean": [], "zero": []}
    for _ids, block in x.blocks(batch):
        stream = torch.from_numpy(block).to(device).float()
        for kind, parts in outputs.items():
            changed = stream.clone()
            part = changed[:, chosen]
            changed[:, chosen] = sae(part.flatten(0, 1)).reshape(part.shape) if kind == "sae" else replacement[kind]
            parts.append(vit.resume(model, changed, layer).float().cpu())
    logits = {kind: torch.cat(parts) for kind, parts in outputs.items()} | {"clean": torch.from_numpy(clean)}
    row: dict[str, float | str] = {"images": len(x), "output_cosine": fidelity.cosine(clean, logits["sae"].numpy())}
    if not geometry.outputs:
        missing = "top1_agreement kl ce_clean ce ce_mean_ablated ce_zero_ablated ce_recovered_mean ce_recovered_zero"
        missing += " accuracy accuracy_clean top1_agreement_mean_ablated"
        return row | dict.fromkeys(missing.split(), float("nan")) | {"ce_target": "none"}

    known = truth >= 0
    labelled = bool(known.any())
    guesses = np.stack([part.argmax(1).numpy() for part in _groups(logits["clean"], names)], 1)
    answers = truth if labelled else guesses
    ce = {kind: _cross_entropy(_groups(value, names), answers) for kind, value in logits.items()}
    pairs = list(zip(_groups(logits["clean"], names), _groups(logits["sae"], names), strict=True))
    return row | {
        "top1_agreement": _agreement(logits["clean"], logits["sae"], names),
        "top1_agreement_mean_ablated": _agreement(logits["clean"], logits["mean"], names),
        "kl": float(sum(fidelity.kl(p, q).mean() for p, q in pairs)),
        "ce_target": "label" if labelled else "prediction",
        "ce_clean": ce["clean"],
        "ce": ce["sae"],
        "ce_mean_ablated": ce["mean"],
        "ce_zero_ablated": ce["zero"],
        "ce_recovered_mean": fidelity.recovered(ce["clean"], ce["sae"], ce["mean"]),
        "ce_recovered_zero": fidelity.recovered(ce["clean"], ce["sae"], ce["zero"]),
        "accuracy": _mean(accuracy(logits["sae"].numpy(), truth, names)),
        "accuracy_clean": _mean(accuracy(clean, truth, names)),
    }


def _groups(logits: torch.Tensor, names: dict[str, list[str]]) -> list[torch.Tensor]:
    """Splits outputs [n, outputs] into their groups; a head whose names are unknown is one group."""
    return list(logits.split([len(v) for v in names.values()], dim=1)) if names else [logits]


def _agreement(logits: torch.Tensor, other: torch.Tensor, names: dict[str, list[str]]) -> float:
    pairs = zip(_groups(logits, names), _groups(other, names), strict=True)
    return float(np.mean([(p.argmax(1) == q.argmax(1)).double().mean() for p, q in pairs]))


def _cross_entropy(groups: list[torch.Tensor], answers: np.ndarray) -> float:
    """Returns the mean over the groups with known answers of the mean cross-entropy over their known images."""
    columns = [torch.from_numpy(column) for column in answers.T]
    losses = [
        F.cross_entropy(g.double(), a, ignore_index=-1) for g, a in zip(groups, columns, strict=True) if (a >= 0).any()
    ]
    return float(torch.stack(losses).mean())


def _mean(values: dict[str, float]) -> float:
    return float(np.mean(list(values.values()))) if values else float("nan")
