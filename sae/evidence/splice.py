"""The SAE inside the ViT: the predictions after a reconstruction replaces a layer's output.

A head may hold several groups of outputs (a softmax per attribute, see `vit.class_names`). Agreement, cross-entropy
and accuracy are means over the groups; KL is their sum, the divergence of the joint prediction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from sae.evidence import fidelity
from sae.images import HELD_OUT, used

if TYPE_CHECKING:
    from torch import nn

    from sae.store import Activations


def sample(manifest: pd.DataFrame, images: int) -> list[int]:
    """Returns the ids of at most `images` held-out images, a random choice that hardly changes with new images."""
    held_out = used(manifest, HELD_OUT)
    return sorted(held_out.sort_values("sha256")["id"].head(images).tolist())


def targets(manifest: pd.DataFrame, names: dict[str, list[str]]) -> np.ndarray:
    """Returns the head's output of the true class for each image and group, int64 [images, groups]; -1 if unknown.

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
    """Returns the accuracy for each group that has images whose class is known, over these images.

    Args:
        logits: [n, outputs]. truth: [n, groups], see `targets`. names: the classes of each group.
    """
    shares: dict[str, float] = {}
    for part, column, group in zip(_groups(logits, names), truth.T, names, strict=bool(names)):
        known = column >= 0
        if known.any():
            shares[group] = float((part.argmax(1) == column)[known].mean())
    return shares


def ablated(
    vit: nn.Module, x: Activations, layer: int, chosen: slice, mean: np.ndarray, batch: int = 64
) -> dict[str, np.ndarray]:
    """Returns the ViT's outputs when it continues from stored activations, unchanged and ablated.

    Args:
        x: images with *all* tokens after block `layer`.
        chosen: the tokens to replace.
        mean: the train set's mean vector of these tokens [d].

    Returns:
        clean: from the stored activations as they are; mean, zero: with the chosen tokens replaced by the mean vector
        and by 0. float32 [images, outputs] each.
    """
    import torch

    from sae import vit as vits

    device = next(vit.parameters()).device
    replacement = {"clean": None, "mean": torch.from_numpy(mean).float().to(device), "zero": 0.0}
    outputs: dict[str, list[np.ndarray]] = {kind: [] for kind in replacement}
    for _ids, block in x.blocks(batch):
        stream = torch.from_numpy(block).to(device).float()
        for kind, value in replacement.items():
            if value is not None:
                stream[:, chosen] = value
            outputs[kind].append(vits.resume(vit, stream, layer).float().cpu().numpy())
    return {kind: np.concatenate(parts) for kind, parts in outputs.items()}


def metrics(
    clean: np.ndarray,
    spliced: np.ndarray,
    mean: np.ndarray,
    zero: np.ndarray,
    truth: np.ndarray,
    names: dict[str, list[str]],
    head: bool = True,
) -> dict[str, float | str]:
    """Returns the change of the ViT's output when a reconstruction, or an ablation, replaces its tokens.

    Args:
        clean: the untouched model's outputs [images, outputs].
        spliced: with the reconstruction.
        mean, zero: with ablated tokens, see `ablated`.
        truth: from `targets`, [images, groups].
        names: see `vit.class_names`.
        head: False for a model without a classification head, whose outputs are its features.

    Returns:
        top1_agreement: share of images and groups whose most likely class stays the same. top1_agreement_mean_ablated:
        the same with mean ablation, to compare with. kl: nats, from the untouched model. output_cosine: mean cosine of
        the outputs. ce_clean, ce, ce_mean_ablated, ce_zero_ablated: cross-entropy, against the true classes where any
        is known (ce_target: label), else against the untouched model's own predictions (ce_target: prediction).
        ce_recovered_mean, ce_recovered_zero: see `fidelity.recovered`. accuracy, accuracy_clean: where true classes are
        known, else NaN. A model without a head has NaN in all but output_cosine.
    """
    row: dict[str, float | str] = {"images": len(clean), "output_cosine": fidelity.cosine(clean, spliced)}
    if not head:
        missing = "top1_agreement kl ce_clean ce ce_mean_ablated ce_zero_ablated ce_recovered_mean ce_recovered_zero"
        missing += " accuracy accuracy_clean top1_agreement_mean_ablated"
        return row | dict.fromkeys(missing.split(), float("nan")) | {"ce_target": "none"}

    before, after, by_mean, by_zero = (_groups(x, names) for x in (clean, spliced, mean, zero))
    labelled = bool((truth >= 0).any())
    answers = truth if labelled else np.stack([part.argmax(1) for part in before], 1)
    ce, ce_clean, ce_mean, ce_zero = (_cross_entropy(groups, answers) for groups in (after, before, by_mean, by_zero))
    return row | {
        "top1_agreement": _agreement(before, after),
        "top1_agreement_mean_ablated": _agreement(before, by_mean),
        "kl": float(sum(fidelity.kl(p, q).mean() for p, q in zip(before, after, strict=True))),
        "ce_target": "label" if labelled else "prediction",
        "ce_clean": ce_clean,
        "ce": ce,
        "ce_mean_ablated": ce_mean,
        "ce_zero_ablated": ce_zero,
        "ce_recovered_mean": fidelity.recovered(ce_clean, ce, ce_mean),
        "ce_recovered_zero": fidelity.recovered(ce_clean, ce, ce_zero),
        "accuracy": float(np.mean([*accuracy(spliced, truth, names).values()] or [np.nan])),
        "accuracy_clean": float(np.mean([*accuracy(clean, truth, names).values()] or [np.nan])),
    }


def _groups(logits: np.ndarray, names: dict[str, list[str]]) -> list[np.ndarray]:
    """Splits outputs [n, outputs] into their groups; a head whose names are unknown is one group."""
    return np.split(logits, np.cumsum([len(values) for values in names.values()])[:-1], 1) if names else [logits]


def _agreement(groups: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Returns the share of images and groups with the same most likely class."""
    return float(np.mean([p.argmax(1) == q.argmax(1) for p, q in zip(groups, others, strict=True)]))


def _cross_entropy(groups: list[np.ndarray], answers: np.ndarray) -> float:
    """Returns the mean over the groups with known answers of the mean cross-entropy over their known images."""
    losses = []
    for group, column in zip(groups, answers.T, strict=True):
        known = np.flatnonzero(column >= 0)
        if len(known):
            losses.append(-log_softmax(group[known].astype(np.float64), 1)[np.arange(len(known)), column[known]].mean())
    return float(np.mean(losses))
