"""Does a latent cause what it correlates with? It is taken out of the ViT, or put in, and the classes that move count.

Three changes are made to the residual stream after the SAE's layer, and the forward pass goes on from there. Each is
a change Δx on the tokens of one image; everything else stays as the ViT computed it, the SAE's error included (Marks
et al. 2024, arXiv 2403.19647), so that what is measured is the latent and not the quality of the reconstruction:

    ablate    Δx(t) = -z_i(t) W_dec[i] / scale on an image where latent i fires: its contribution is taken out
    control   the same tokens of the same images and the same ‖Δx(t)‖, but along -W_dec[j] of a random other latent j
    steer     Δx(t) = +z_i(t) W_dec[i] / scale on an image where i is silent: the activations that it has on one of
              its own images, at the same tokens, so that it is neither stronger nor in more places than in the ViT

The effect on a class is how far its log-probability moves, in nats, against the mean over the classes of its group:
the change of its centred log-ratio (Aitchison 1982, "The statistical analysis of compositional data"). A group is one
softmax of the head (`vit.class_names`). Plain log-probabilities give the same order of classes within a group, but
hardly move for a class of which the model is sure, and all move together for the others; a logit alone means nothing
in a softmax. All effects are signed alike, above 0 where the latent speaks for the class:

    ablate, control    clr(class | clean) - clr(class | changed)
    steer              clr(class | changed) - clr(class | clean)

The control matters: on images of a class almost any damage lowers that class, and a latent's strongest images are
mostly of the class that it correlates with. Were latents no better than directions of their kind, everything said of
the ablation would be distributed as what is said of the control. One control says little about one latent; many do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from tqdm import tqdm

from sae import vit
from sae.activations import Activations
from sae.autoencoder import SparseAutoencoder
from sae.codes import Codes
from sae.errors import InputError
from sae.evidence import fidelity

KINDS = ("ablate", "control", "steer")
_ROUNDING = 2e-6  # of the largest output: two float32 forward passes in other batches differ by up to half of it
_EFFECTS = ["latent", "kind", "attribute", "class", "effect", "se", "images"]


@dataclass(frozen=True)
class Causality:
    """Two tables.

    effects: the classes that move most, by latent, kind and attribute: latent, kind (of KINDS), attribute (the group
        of outputs), class, effect (mean over the images, nats), se (its standard error; NaN for one image), images.
    latents: a row per latent, see `measure`.
    """

    effects: pd.DataFrame
    latents: pd.DataFrame


@dataclass(frozen=True)
class _Change:
    """What is added to one image's stream: values[m] · W_dec[direction] / scale at tokens[m] of the SAE's tokens."""

    latent: int
    kind: str
    image: int  # its place in the store
    tokens: np.ndarray
    values: np.ndarray
    direction: int


def choose(codes: Codes, count: int, seed: int = 0, at_least: int = 4) -> list[int]:
    """Draws `count` latents blindly among those that fire on `at_least` images or more; fewer where there are fewer.

    Blindly, so that means over them are means over the dictionary's latents of this kind.
    """
    often = np.flatnonzero(np.bincount(codes.images.indices, minlength=codes.latents) >= at_least)
    return sorted(np.random.default_rng(seed).choice(often, min(count, len(often)), replace=False).tolist())


@torch.inference_mode()
def measure(
    model: nn.Module,
    sae: SparseAutoencoder,
    x: Activations,
    codes: Codes,
    latents: Sequence[int],
    classes: pd.DataFrame | None = None,
    images: int = 8,
    seed: int = 0,
    top: int = 5,
    batch: int = 16,
) -> Causality:
    """Ablates, steers and controls each latent on held-out images.

    The cost is at most 4 · latents · images forward passes of the blocks behind the layer.

    Args:
        x: held-out images with *all* tokens at the SAE's layer.
        codes: the SAE's codes of its own tokens of the same images.
        classes: the class that correlates with a latent: latent, attribute, class. Of several rows of a latent the
            first that the head knows counts, by the rule of `faithfulness.targets`.
        images: those on which a latent fires strongest; as many random silent ones for steering.
        seed: draws the silent images and the control's direction, for each latent anew: its rows do not depend on
            which others are looked at.
        top: classes kept in `effects`, by |effect|.
        batch: images in one forward pass.

    Returns:
        `latents` has a row for each of the latents that fires on any of the images, in their order:

        images          how many it was ablated on
        measure         `kl`: nats, KL(clean ‖ changed) summed over the head's groups; `cosine distance` of the outputs
                        for a model without a head, which has no classes: no rows in `effects`, no agreement
        size, size_control, size_steered    mean over the images of that measure; size_control is NaN where there is
                        no other latent, size_steered where the latent fires on all images
        ratio           size / size_control; NaN where the control moves nothing
        p               two-sided Wilcoxon signed-rank test of the images' sizes, ablation against this one control;
                        with 8 images it cannot be below 0.008. NaN where no image differs
        causal_attribute, causal_class, causal_effect    the class with the largest mean effect under ablation, over
                        all groups; a maximum, so it is above 0 for any change: control_effect is the control's
        correlated_attribute, correlated_class, correlated_effect    the class given in `classes`, and its mean effect
        rank            of that class by mean effect among the classes of its group, 0 first; ties share their ranks
        agreement       1 - rank / (classes - 1): 1 where ablation lowers that class most, 0.5 expected by chance
        sign_agrees     whether its effect is above 0
        agreement_control, sign_agrees_control, agreement_steered    the same of the other two kinds

        An image none of whose outputs moves by more than rounding counts as 0. What is not known is NaN, None or <NA>:
        rank, agreement and sign where `classes` or the head do not know a class, or where no output moves (patches
        after the last block of a model that reads its class token, say).

    Raises:
        InputError: `codes` and `x` are not of the same images.
    """
    if not np.array_equal(codes.ids, x.ids):
        raise InputError("codes and activations are not of the same images")
    directions = sae.W_dec / sae.scale
    norms = directions.double().norm(dim=1).cpu().numpy()
    changes = list(_changes(codes, list(latents), norms, images, seed))
    used, clean_of = np.unique([c.image for c in changes], return_inverse=True)
    untouched = [_Change(-1, "clean", image, np.arange(0), np.zeros(0, np.float32), 0) for image in used]
    outputs = _outputs(model, sae, x, untouched + changes, directions, batch)
    clean, changed = outputs[: len(used)][clean_of], outputs[len(used) :]

    names = vit.class_names(model)
    outputs_of_head = vit.geometry(model).outputs
    names = names or ({"output": [str(i) for i in range(outputs_of_head)]} if outputs_of_head else {})
    size, effects = _sizes(clean, changed, names)
    where: dict[tuple[int, str], list[int]] = {}
    for place, change in enumerate(changes):
        where.setdefault((change.latent, change.kind), []).append(place)
        if change.kind == "steer":
            for part in effects.values():
                part[place] *= -1

    correlated = _correlated(classes, names)
    rows, moved = [], []
    for latent in dict.fromkeys(c.latent for c in changes):
        places = {kind: where.get((latent, kind), []) for kind in KINDS}
        mean = {k: {g: part[p].mean(0) for g, part in effects.items()} for k, p in places.items() if p}
        sizes = {kind: size[place] for kind, place in places.items()}
        facts = {"latent": latent, "images": len(places["ablate"]), "measure": "kl" if names else "cosine distance"}
        rows.append(facts | _compare(sizes) | _top(mean, names) | _agreement(mean, names, correlated.get(latent)))
        for kind in mean:
            for group, part in effects.items():
                moved += _most(part[places[kind]], names[group], top, (latent, kind, group))
    table = pd.DataFrame(rows, columns=None if rows else ["latent"])
    for column in table.columns[table.columns.str.startswith("sign_")]:
        table[column] = table[column].astype("boolean")
    return Causality(pd.DataFrame(moved, columns=_EFFECTS), table)


def _changes(codes: Codes, latents: list[int], norms: np.ndarray, images: int, seed: int) -> Iterator[_Change]:
    """Yields every change to be made; `norms` [F] are the decoder rows'."""
    strongest, z = codes.images[:, latents].tocsc(), codes.z[:, latents].tocsc()
    alive = np.flatnonzero((np.bincount(codes.z.indices, minlength=codes.latents) > 0) & (norms > 0))
    for column, latent in enumerate(latents):
        rng = np.random.default_rng([seed, latent])
        part = slice(*strongest.indptr[column : column + 2])
        fired = strongest.indices[part]
        shown = fired[np.lexsort((fired, -strongest.data[part]))][:images]
        silent = np.setdiff1d(np.arange(len(codes.ids)), fired)
        silent = rng.choice(silent, min(len(shown), len(silent)), replace=False)
        others = alive[alive != latent]
        other = rng.choice(others) if len(others) else None  # one for all images, as the latent itself is one
        part = slice(*z.indptr[column : column + 2])
        image, token = np.divmod(z.indices[part], codes.tokens)
        for number, place in enumerate(shown):
            here = image == place
            tokens, values = token[here], z.data[part][here]
            yield _Change(latent, "ablate", place, tokens, -values, latent)
            if other is not None:
                yield _Change(latent, "control", place, tokens, -values * (norms[latent] / norms[other]), other)
            if number < len(silent):
                yield _Change(latent, "steer", silent[number], tokens, values, latent)


def _outputs(
    model: nn.Module,
    sae: SparseAutoencoder,
    x: Activations,
    changes: list[_Change],
    directions: torch.Tensor,
    batch: int,
) -> torch.Tensor:
    """Returns the model's outputs after each change, float64 [changes, outputs]."""
    first_token = vit.geometry(model).select(sae.config.tokens).start or 0
    parts = []
    for first in tqdm(range(0, len(changes), batch), desc="causal effects", unit="batch"):
        part = changes[first : first + batch]
        stream = torch.from_numpy(x.read(np.array([c.image for c in part]))).to(directions.device).float()
        for tokens, change in zip(stream, part, strict=True):
            values = torch.from_numpy(change.values).to(tokens)
            tokens[change.tokens + first_token] += values[:, None] * directions[change.direction]
        parts.append(vit.resume(model, stream, sae.config.layer).double().cpu())
    return torch.cat(parts) if parts else torch.zeros(0, max(1, vit.geometry(model).outputs), dtype=torch.float64)


def _sizes(
    clean: torch.Tensor, changed: torch.Tensor, names: dict[str, list[str]]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns how far the outputs moved [n], and by group the effect of what was taken out, [n, classes]."""
    still = (clean - changed).abs().amax(1) <= _ROUNDING * clean.abs().amax(1)
    changed = torch.where(still[:, None], clean, changed)
    if not names:
        return (1 - F.cosine_similarity(clean, changed)).clamp(min=0).numpy(), {}
    widths = [len(values) for values in names.values()]
    pairs = list(zip(clean.split(widths, 1), changed.split(widths, 1), strict=True))
    kl = torch.stack([fidelity.kl(p, q) for p, q in pairs]).sum(0).clamp(min=0)
    # Of the log-probabilities' difference, the softmaxes' normalisation is the same for all classes: centring drops it.
    effects = {g: ((p - q) - (p - q).mean(1, keepdim=True)).numpy() for g, (p, q) in zip(names, pairs, strict=True)}
    return kl.numpy(), effects


def _correlated(classes: pd.DataFrame | None, names: dict[str, list[str]]) -> dict[int, tuple[str, int]]:
    """Returns latent -> its first class that the head knows, as (group, place in the group)."""
    place = {(group, value): i for group, values in names.items() for i, value in enumerate(values)}
    found: dict[int, tuple[str, int]] = {}
    if classes is not None:
        for latent, group, text in zip(classes["latent"], classes["attribute"], classes["class"], strict=True):
            key = (group, str(text).split("/")[-1])
            if key in place:
                found.setdefault(latent, (group, place[key]))
    return found


def _compare(sizes: dict[str, np.ndarray]) -> dict[str, float]:
    mean = {kind: part.mean() if len(part) else np.nan for kind, part in sizes.items()}
    differ = len(sizes["control"]) and (sizes["ablate"] != sizes["control"]).any()
    return {
        "size": mean["ablate"],
        "size_control": mean["control"],
        "size_steered": mean["steer"],
        "ratio": mean["ablate"] / mean["control"] if mean["control"] > 0 else np.nan,
        "p": stats.wilcoxon(sizes["ablate"], sizes["control"]).pvalue if differ else np.nan,
    }


def _top(mean: dict[str, dict[str, np.ndarray]], names: dict[str, list[str]]) -> dict[str, object]:
    facts: dict[str, object] = {"causal_attribute": None, "causal_class": None, "causal_effect": np.nan}
    largest = max(mean["ablate"], key=lambda g: mean["ablate"][g].max(), default=None)
    if largest is not None and mean["ablate"][largest].any():
        place = mean["ablate"][largest].argmax()
        facts |= {"causal_attribute": largest, "causal_class": names[largest][place]}
        facts["causal_effect"] = mean["ablate"][largest][place]
    return facts | {"control_effect": max((part.max() for part in mean.get("control", {}).values()), default=np.nan)}


def _agreement(
    mean: dict[str, dict[str, np.ndarray]], names: dict[str, list[str]], correlated: tuple[str, int] | None
) -> dict[str, object]:
    group, place = correlated or (None, None)
    facts: dict[str, object] = {
        "correlated_attribute": group,
        "correlated_class": None if group is None else names[group][place],
        "correlated_effect": np.nan if group is None else mean["ablate"][group][place],
    }
    rank = {kind: np.nan for kind in KINDS}
    sign: dict[str, bool | None] = {kind: None for kind in KINDS}
    for kind, part in mean.items():
        if group is not None and len(part[group]) > 1 and part[group].any():
            rank[kind] = stats.rankdata(-part[group])[place] - 1
            sign[kind] = bool(part[group][place] > 0)
    last = len(names[group]) - 1 if group is not None else 1
    return facts | {
        "rank": rank["ablate"],
        "agreement": 1 - rank["ablate"] / max(last, 1),
        "sign_agrees": sign["ablate"],
        "agreement_control": 1 - rank["control"] / max(last, 1),
        "sign_agrees_control": sign["control"],
        "agreement_steered": 1 - rank["steer"] / max(last, 1),
    }


def _most(effects: np.ndarray, names: list[str], top: int, key: tuple[int, str, str]) -> list[tuple]:
    """Returns rows of `effects` for the classes that move most, by effects [images, classes]."""
    mean, images = effects.mean(0), len(effects)
    error = effects.std(0, ddof=1) / np.sqrt(images) if images > 1 else np.full(len(mean), np.nan)
    order = np.argsort(-abs(mean), kind="stable")[:top]
    return [(*key, names[i], mean[i], error[i], images) for i in order]
