"""An estimate of the effect of every latent on the ViT's predictions, from one gradient per image.

`interventions` removes a latent and runs the ViT again, which costs a forward pass per latent and image. Here the
gradient of the prediction by the layer's tokens is computed once per image and serves all latents of all dictionaries
(attribution patching, Nanda 2023; Marks et al. 2024, arXiv 2403.19647, for sparse features). The estimated effect of
latent i on the class that the ViT predicts for an image is

    Σ_t z_i(t) / scale · W_dec[i] · ∂ clr(class) / ∂ x(t)

in nats: the centred log-ratio of `interventions`, above 0 where the latent raises the class. A head of several softmax
groups predicts a class in each of them, and each has its gradient.

The gradient is not taken at the tokens themselves, but where they have moved a sixth of the way towards the train set's
mean. The removal of a latent is a long step, on which the gradient changes; this point stands for the path, and the
estimates agree better with exact removal there. `agreement` says how well they agree in a run.

The control of latent i has the same activations at the same tokens, and the direction of a random other latent with
i's norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from sae.evidence.interventions import KINDS, Responses
from sae.latent_codes import Codes

if TYPE_CHECKING:
    from torch import nn

    from sae.autoencoder import SparseAutoencoder
    from sae.store import Activations

_MOVED = 1 / 6  # of the way to the mean
_COLUMNS = ["latent", "attribute", "class", "effect", "control", "active", "images"]


@dataclass(frozen=True)
class Gradients:
    """The gradients of the predictions by one layer's tokens.

    Attributes:
        by_token: float16 [m, groups, tokens, d], of the predicted class's centred log-ratio, by standardised tokens.
        predicted: int64 [m, groups], the predicted class's place in its group.
        scale: float64 [1], of the standardised tokens. Float16 holds their gradients, whatever the ViT's units are.
    """

    by_token: np.ndarray
    predicted: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True)
class Attributions:
    """The estimated effects of one dictionary's latents on the m images of the sample.

    Attributes:
        effects, control: float32 [entries, groups], in the order of the entries of the sample's `Codes.images`.
        predicted: as in `Gradients`.
    """

    effects: np.ndarray
    control: np.ndarray
    predicted: np.ndarray


def gradients(
    vit: nn.Module, x: Activations, layer: int, chosen: slice, mean: np.ndarray, scale: float, batch: int = 64
) -> Gradients:
    """Computes the gradients of the predictions.

    Args:
        x: images with *all* tokens after block `layer`.
        chosen: the tokens that the dictionaries read.
        mean, scale: the train set's, of these tokens.
        batch: images in one forward pass.
    """
    import torch

    from sae import vit as vits

    groups = vits.groups(vit)
    device = next(vit.parameters()).device
    centre = torch.from_numpy(mean).float().to(device)
    count = len(range(*chosen.indices(x.tokens)))
    by_token = np.empty((len(x), len(groups), count, x.width), np.float16)
    predicted = np.empty((len(x), len(groups)), np.int64)
    first = 0
    for _ids, block in x.blocks(batch):
        stream = torch.from_numpy(block).to(device).float()
        clean = vits.resume(vit, stream, layer).split(groups, 1) if groups else ()
        part = stream[:, chosen].lerp(centre, _MOVED).requires_grad_()
        moved = stream.clone()
        moved[:, chosen] = part
        outputs = vits.resume(vit, moved, layer).split(groups, 1) if groups else ()
        rows = slice(first, first + len(block))
        for group, (before, after) in enumerate(zip(clean, outputs, strict=True)):
            best = before.argmax(1)
            ratio = (after - after.mean(1, keepdim=True)).gather(1, best[:, None]).sum()
            gradient = torch.autograd.grad(ratio, part, retain_graph=True)[0] / scale
            by_token[rows, group], predicted[rows, group] = gradient.half().cpu().numpy(), best.cpu().numpy()
        first += len(block)
    return Gradients(by_token, predicted, np.array([scale], np.float64))


def attribute(dictionary: SparseAutoencoder, codes: Codes, by: Gradients, seed: int = 0) -> Attributions:
    """Estimates the effects of all latents of a dictionary.

    Args:
        codes: of the images of the gradients, in their order.
        seed: of the control's directions.
    """
    import torch

    assert codes.images is not None  # as in all codes but a second seed's
    groups, images = by.by_token.shape[1], codes.images
    effects, control = (np.zeros((images.nnz, groups), np.float32) for _ in range(2))
    # In the units of the gradients: an SAE with a LayerNorm in front decodes to those of x.
    rows = dictionary.W_dec.detach() * (float(by.scale[0]) / dictionary.scale)
    norms = rows.norm(dim=1)
    other = torch.from_numpy(others(codes, seed)).to(rows.device)
    turned = rows[other] * (norms / norms[other].clamp_min(1e-12))[:, None]
    for image in range(images.shape[0] if groups else 0):
        z = codes.z[image * codes.tokens : (image + 1) * codes.tokens].tocoo()
        if not z.nnz:
            continue
        entries = slice(*images.indptr[image : image + 2])
        place = entries.start + np.searchsorted(images.indices[entries], z.col)
        gradient = torch.from_numpy(np.array(by.by_token[image])).to(rows.device, torch.float32)
        token, latent = (torch.from_numpy(part.astype(np.int64)).to(rows.device) for part in (z.row, z.col))
        for directions, out in ((rows, effects), (turned, control)):
            slopes = (gradient @ directions.T)[:, token, latent].cpu().numpy()
            np.add.at(out, place, (slopes * z.data).T)
    return Attributions(effects, control, by.predicted)


def agreement(
    found: Attributions, codes: Codes, responses: Responses, names: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Compares the estimates with exact removal, over all ablated latents, their images and the predicted classes.

    Args:
        codes: as in `attribute`.
        names: the classes of the head by group.

    Returns:
        attribution_correlation: Spearman's. attribution_sign: the share of equal signs, weighted by the exact effect.
        NaN where nothing was ablated or no output changes.
    """
    assert codes.images is not None
    ablated = np.flatnonzero(responses.kind == KINDS.index("ablate"))
    starts = np.cumsum([0, *(len(values) for values in names.values())])[: found.predicted.shape[1]]
    exact, estimated = np.zeros((2, len(ablated), len(starts)))
    for row, change in enumerate(ablated):
        image = responses.image[change]
        entries = slice(*codes.images.indptr[image : image + 2])
        place = entries.start + np.searchsorted(codes.images.indices[entries], responses.latent[change])
        exact[row] = responses.effects[change, starts + found.predicted[image]]
        estimated[row] = found.effects[place]
    correlation, sign = agree(exact, estimated)
    return {"attribution_correlation": correlation, "attribution_sign": sign}


def agree(exact: np.ndarray, estimated: np.ndarray) -> tuple[float, float]:
    """Returns Spearman's correlation, and the share of equal signs weighted by exact effect; NaN if one is all 0."""
    if not exact.any() or not estimated.any():
        return np.nan, np.nan
    weight, same = abs(exact), np.sign(exact) == np.sign(estimated)
    correlation = float(stats.spearmanr(exact.ravel(), estimated.ravel()).statistic)
    return correlation, float((weight * same).sum() / weight.sum())


def sizes(found: Attributions, codes: Codes) -> pd.DataFrame:
    """Returns the mean size of each latent's estimated effects: latent, estimated_effect, estimated_control, in nats.

    The mean of the absolute values over the images on which the latent fires and over the predicted classes; NaN where
    it fires on no image, and without a head.

    Args:
        codes: as in `attribute`.
    """
    assert codes.images is not None
    latent, fires = codes.images.indices, np.bincount(codes.images.indices, minlength=codes.latents)
    rows = pd.DataFrame({"latent": np.arange(codes.latents)})
    for name, effects in (("estimated_effect", found.effects), ("estimated_control", found.control)):
        mean = abs(effects).mean(1) if effects.shape[1] else np.full(len(effects), np.nan)
        total = np.bincount(latent, mean, codes.latents)
        rows[name] = np.divide(total, fires, out=np.full(codes.latents, np.nan), where=fires > 0)
    return rows


def table(found: Attributions, codes: Codes, names: Mapping[str, Sequence[str]], top: int = 8) -> pd.DataFrame:
    """Returns the estimated effects of each latent on the classes that the ViT predicts, the largest first.

    Args:
        codes: as in `attribute`.
        names: the classes of the head by group; if empty, outputs get numbers as names.
        top: classes kept of a latent.

    Returns:
        latent, attribute (the group), class; effect: nats, mean over the images for which the ViT predicts the class,
        0 where the latent is silent; control: the same of the random direction; active: on how many of these images
        the latent fires; images: how many they are.
    """
    assert codes.images is not None
    row = np.repeat(np.arange(codes.images.shape[0]), np.diff(codes.images.indptr))
    parts = []
    for group, attribute in enumerate(names or (["output"] if found.predicted.size else [])):
        predicted = found.predicted[:, group]
        pairs = pd.DataFrame({"latent": codes.images.indices, "place": predicted[row]})
        pairs = pairs.assign(effect=found.effects[:, group], control=found.control[:, group], active=1)
        sums = pairs.groupby(["latent", "place"], as_index=False).sum()
        images = np.bincount(predicted)[sums["place"]]
        of_group = list(names[attribute]) if names else [str(i) for i in range(predicted.max() + 1)]
        sums = sums.assign(attribute=attribute, images=images, **{"class": np.array(of_group, object)[sums["place"]]})
        parts.append(sums.assign(effect=sums["effect"] / images, control=sums["control"] / images))
    if not parts:
        return pd.DataFrame(columns=_COLUMNS)
    rows = pd.concat(parts)[_COLUMNS]
    rows = rows[(rows["effect"] != 0) | (rows["control"] != 0)]  # patches after the last block change nothing
    order = np.lexsort((-rows["effect"].abs(), rows["latent"]))
    return rows.iloc[order].groupby("latent", sort=False).head(top).reset_index(drop=True)


def others(codes: Codes, seed: int) -> np.ndarray:
    """Returns a random other latent that fires for each latent, int64 [F]; itself where it is the only one."""
    rng, latents = np.random.default_rng(seed), codes.latents
    alive = np.flatnonzero(np.bincount(codes.z.indices, minlength=latents))
    if len(alive) < 2:
        return np.arange(latents)
    other = rng.choice(alive, latents)
    while (same := other == np.arange(latents)).any():
        other[same] = rng.choice(alive, int(same.sum()))
    return other
