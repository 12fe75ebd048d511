"""The causal effect of latents: a latent is removed from the ViT or added to it, and the class probabilities change.

Three changes are made to the residual stream after the SAE's layer, and the forward pass continues from there. Each is
a change Δx on the tokens of one image. Everything else stays as the ViT computed it, the SAE's error included (Marks et
al. 2024, arXiv 2403.19647). So the effect does not depend on the quality of the reconstruction:

    ablate    Δx(t) = -z_i(t) W_dec[i] / scale on an image where latent i fires: its contribution is removed
    control   the same tokens of the same images and the same ‖Δx(t)‖, but along -W_dec[j] of a random other latent j
    steer     Δx(t) = +z_i(t) W_dec[i] / scale on an image where i is silent: the activations that it has on one of
              its own images, at the same tokens, so that its strength and places occur in the ViT

The effect on a class is the change of its log-probability, in nats, relative to the mean over the classes of its group:
the change of its centred log-ratio (Aitchison 1982, "The statistical analysis of compositional data"). A group is one
softmax of the head (`vit.class_names`). Plain log-probabilities give the same order of classes within a group. But they
hardly change for a class of high probability, and then change together for all other classes. A single logit has no
meaning in a softmax. Effects are above 0 where the latent raises the class:

    ablate, control    clr(class | clean) - clr(class | changed)
    steer              clr(class | changed) - clr(class | clean)

The control matters: on images of a class almost any damage lowers that class, and a latent's strongest images are
mostly of the class that it correlates with. If latents were no better than random directions, ablation and control
would show the same distribution of effects. The control of one latent is a single draw; compare many latents.

`run` needs the ViT and torch; `tables` reads what it returns and needs neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from sae.errors import InputError
from sae.evidence.fidelity import kl
from sae.latent_codes import Codes

if TYPE_CHECKING:  # torch takes seconds to import, and `tables` does without
    from torch import nn

    from sae.autoencoder import SparseAutoencoder
    from sae.store import Activations

KINDS = ("ablate", "control", "steer")
BATCH = 16  # images in one forward pass
_ROUNDING = 2e-6  # of the largest output: two float32 forward passes in other batches differ by up to half of it
_LATENTS = ["latent", "images", "measure", "size", "size_control", "size_steered", "ratio", "p"]
_LATENTS += ["causal_attribute", "causal_class", "causal_effect", "control_effect"]
_LATENTS += ["correlated_attribute", "correlated_class", "correlated_effect"]
_LATENTS += ["rank", "agreement", "sign_agrees", "agreement_control", "sign_agrees_control", "agreement_steered"]
_EFFECTS = ["latent", "kind", "attribute", "class", "effect", "se", "images"]


@dataclass(frozen=True)
class Responses:
    """The ViT's responses to m changes, in the order of the latents.

    Attributes:
        latent: int64 [m], the latent that was ablated, controlled for or steered.
        kind: int64 [m], its place in KINDS.
        image: int64 [m], the image's place among the sample.
        size: float64 [m], the change of the outputs, see `tables`.
        effects: float64 [m, outputs], the effect on each class; [m, 0] for a model without a head.
    """

    latent: np.ndarray
    kind: np.ndarray
    image: np.ndarray
    size: np.ndarray
    effects: np.ndarray


@dataclass(frozen=True)
class _Change:
    """An addition to one image's stream: values[m] · W_dec[direction] / scale at tokens[m] of the SAE's tokens."""

    latent: int
    kind: str
    image: int  # its place in the store
    tokens: np.ndarray
    values: np.ndarray
    direction: int


def choose(codes: Codes, count: int, seed: int = 0, at_least: int = 4) -> list[int]:
    """Draws `count` random latents among those that fire on at least `at_least` images; all of these if they are fewer.

    The draw ignores everything else about the latents, so their mean estimates the mean over all of this kind.
    """
    assert codes.images is not None  # as in all codes but a second seed's
    often = np.flatnonzero(np.bincount(codes.images.indices, minlength=codes.z.shape[1]) >= at_least)
    return sorted(np.random.default_rng(seed).choice(often, min(count, len(often)), replace=False).tolist())


def run(
    vit: nn.Module,
    dictionary: SparseAutoencoder,
    x: Activations,
    codes: Codes,
    latents: Sequence[int],
    clean: np.ndarray,
    images: int = 8,
    seed: int = 0,
) -> Responses:
    """Ablates, steers and controls each latent on held-out images.

    The cost is at most 3 · latents · images forward passes of the blocks after the layer.

    Args:
        x: held-out images with *all* tokens at the dictionary's layer.
        codes: the dictionary's codes of its own tokens of the same images.
        clean: the outputs for the stored tokens `x` without any change, float32 [len(x), outputs].
        images: number of images per latent: those on which it fires strongest, and as many random silent ones for
            steering.
        seed: of the silent images and the control's direction. Each latent has its own draw, so its rows do not depend
            on the other latents.

    Raises:
        InputError: `codes` and `x` are not of the same images, or the dictionary's layer is unknown.
    """
    import torch
    from tqdm import tqdm

    from sae import vit as vits

    if not np.array_equal(codes.ids, x.ids):
        raise InputError("codes and activations are of different images; pass those of the same images")
    layer = dictionary.config.layer
    if layer is None:
        raise InputError("this dictionary has no layer: set SAEConfig.layer, or train it with Source(layer=…)")
    directions = (dictionary.W_dec / dictionary.scale).detach()
    norms = directions.double().norm(dim=1).cpu().numpy()
    changes = list(_changes(codes, list(latents), norms, images, seed))
    image = np.array([change.image for change in changes], np.int64)
    first_token = vits.geometry(vit).select(dictionary.config.tokens).start or 0
    outputs = [np.zeros((0, clean.shape[1]), np.float32)]
    with torch.inference_mode():
        for first in tqdm(range(0, len(changes), BATCH), desc="interventions", unit="batch"):
            stream = torch.from_numpy(x.read(image[first : first + BATCH])).to(directions.device).float()
            for tokens, change in zip(stream, changes[first : first + BATCH], strict=True):
                values = directions.new_tensor(change.values)
                tokens[change.tokens + first_token] += values[:, None] * directions[change.direction]
            outputs.append(vits.resume(vit, stream, layer).float().cpu().numpy())
    size, effects = respond(clean[image], np.concatenate(outputs), vits.groups(vit))
    kind = np.array([KINDS.index(change.kind) for change in changes], np.int64)
    effects[kind == KINDS.index("steer")] *= -1
    return Responses(np.array([change.latent for change in changes], np.int64), kind, image, size, effects)


def respond(clean: np.ndarray, changed: np.ndarray, groups: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the size of the change of outputs [n, outputs], [n], and the effects on the classes, [n, outputs].

    Changes within rounding count as 0.

    Args:
        groups: the number of outputs of each softmax; empty for a model without a head, which has no effects, [n, 0].
    """
    clean, changed = clean.astype(np.float64), changed.astype(np.float64)
    still = np.abs(clean - changed).max(1) <= _ROUNDING * np.abs(clean).max(1)
    changed = np.where(still[:, None], clean, changed)
    if not len(groups):
        norms = np.linalg.norm(clean, axis=1) * np.linalg.norm(changed, axis=1)
        cosine = (clean * changed).sum(1) / np.maximum(norms, 1e-300)
        return np.where(still, 0, np.maximum(1 - cosine, 0)), np.zeros((len(clean), 0))
    size, effects = np.zeros(len(clean)), []
    for p, q in zip(*(np.split(part, np.cumsum(groups)[:-1], 1) for part in (clean, changed)), strict=True):
        size += kl(p, q)
        # The normalisation of the softmax is the same for all classes, so that centring removes it.
        effects.append((p - q) - (p - q).mean(1, keepdims=True))
    return np.maximum(size, 0), np.concatenate(effects, 1)


def tables(
    responses: Responses, names: Mapping[str, Sequence[str]], classes: pd.DataFrame, top: int = 5
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns a table of the latents and one of the effects on classes.

    Args:
        names: the classes of the head, by group, from `vit.class_names`; if empty, outputs get numbers as names.
        classes: the classes that correlate with each latent: latent, attribute, class. The first row of a latent whose
            class the head knows counts, by the rule of `splice.targets`.
        top: classes kept in the effects, by |effect|.

    Returns:
        a row for each latent that fires on any of the images, in the order of the responses:

        images          number of images on which it was ablated
        measure         `kl`: nats, KL(clean ‖ changed) summed over the head's groups; `cosine distance` of the outputs
                        for a model without a head, which has no classes: no effects, no agreement
        size, size_control, size_steered    mean over the images of that measure; size_control is NaN if there is
                        no other latent, size_steered if the latent fires on all images
        ratio           size / size_control; NaN where the control changes nothing
        p               two-sided Wilcoxon signed-rank test of the images' sizes, ablation against this one control;
                        with 8 images it cannot be below 0.008. NaN where no image differs
        causal_attribute, causal_class, causal_effect    the class with the largest mean effect under ablation, over
                        all groups; a maximum, so it is above 0 for any change: control_effect is the control's
        correlated_attribute, correlated_class, correlated_effect    the class given in `classes`, and its mean effect
        rank            of that class by mean effect among the classes of its group, 0 first; ties share their ranks
        agreement       1 - rank / (classes - 1): 1 where ablation lowers that class most, 0.5 expected by chance
        sign_agrees     whether its effect is above 0
        agreement_control, sign_agrees_control, agreement_steered    the same for the other two kinds

        The change of an image counts as 0 if it is within rounding. Unknown values are NaN, None or <NA>: rank,
        agreement and sign are unknown if `classes` or the head do not know a class, or if no output changes (such as
        for patches after the last block of a model that reads its class token).

        The second table has the largest effects for each latent, kind and attribute: latent, kind (of KINDS), attribute
        (the group of outputs), class, effect (mean over the images, nats), se (its standard error; NaN for one image),
        images.
    """
    outputs = responses.effects.shape[1]
    names = dict(names) or ({"output": [str(i) for i in range(outputs)]} if outputs else {})
    ends = np.cumsum([0, *(len(values) for values in names.values())])
    effects = {
        group: responses.effects[:, start:end].astype(np.float64)
        for group, start, end in zip(names, ends, ends[1:], strict=False)
    }
    correlated = _correlated(classes[classes["latent"].isin(responses.latent)], names)
    rows, moved = [], []
    for latent in dict.fromkeys(responses.latent.tolist()):
        of_latent = responses.latent == latent
        places = {kind: np.flatnonzero(of_latent & (responses.kind == i)) for i, kind in enumerate(KINDS)}
        mean = {k: {g: part[p].mean(0) for g, part in effects.items()} for k, p in places.items() if len(p)}
        sizes = {kind: responses.size[place] for kind, place in places.items()}
        facts = {"latent": latent, "images": len(places["ablate"]), "measure": "kl" if names else "cosine distance"}
        rows.append(facts | _compare(sizes) | _top(mean, names) | _agreement(mean, names, correlated.get(latent)))
        for kind in mean:
            for group, part in effects.items():
                moved += _most(part[places[kind]], names[group], top, (latent, kind, group))
    table = pd.DataFrame(rows, columns=None if rows else _LATENTS)
    for column in table.columns[table.columns.str.startswith("sign_")]:
        table[column] = table[column].astype("boolean")
    return table, pd.DataFrame(moved, columns=_EFFECTS)


def _changes(codes: Codes, latents: list[int], norms: np.ndarray, images: int, seed: int) -> Iterator[_Change]:
    """Yields every change to be made; `norms` [F] are the decoder rows'."""
    assert codes.images is not None  # as in all codes but a second seed's
    strongest, z = codes.images[:, latents].tocsc(), codes.z[:, latents].tocsc()
    alive = np.flatnonzero((np.bincount(codes.z.indices, minlength=codes.z.shape[1]) > 0) & (norms > 0))
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
            of_image = image == place
            tokens, values = token[of_image], z.data[part][of_image]
            yield _Change(latent, "ablate", place, tokens, -values, latent)
            if other is not None:
                yield _Change(latent, "control", place, tokens, -values * (norms[latent] / norms[other]), other)
            if number < len(silent):
                yield _Change(latent, "steer", silent[number], tokens, values, latent)


def _correlated(classes: pd.DataFrame, names: Mapping[str, Sequence[str]]) -> dict[int, tuple[str, int]]:
    """Returns latent -> its first class that the head knows, as (group, place in the group)."""
    place = {(group, value): i for group, values in names.items() for i, value in enumerate(values)}
    first: dict[int, tuple[str, int]] = {}
    for latent, group, text in zip(classes["latent"], classes["attribute"], classes["class"], strict=True):
        key = (group, str(text).split("/")[-1])
        if key in place:
            first.setdefault(latent, (group, place[key]))
    return first


def _compare(sizes: dict[str, np.ndarray]) -> dict[str, float]:
    mean = {kind: part.mean() if len(part) else np.nan for kind, part in sizes.items()}
    differ = len(sizes["control"]) and (sizes["ablate"] != sizes["control"]).any()
    return {
        "size": mean["ablate"],
        "size_control": mean["control"],
        "size_steered": mean["steer"],
        "ratio": mean["ablate"] / mean["control"] if mean["control"] > 0 else np.nan,
        "p": float(stats.wilcoxon(sizes["ablate"], sizes["control"]).pvalue) if differ else np.nan,
    }


def _top(mean: dict[str, dict[str, np.ndarray]], names: Mapping[str, Sequence[str]]) -> dict[str, object]:
    facts: dict[str, object] = {"causal_attribute": None, "causal_class": None, "causal_effect": np.nan}
    largest = max(mean["ablate"], key=lambda g: mean["ablate"][g].max(), default=None)
    if largest is not None and mean["ablate"][largest].any():
        place = int(mean["ablate"][largest].argmax())
        facts |= {"causal_attribute": largest, "causal_class": names[largest][place]}
        facts["causal_effect"] = mean["ablate"][largest][place]
    return facts | {"control_effect": max((part.max() for part in mean.get("control", {}).values()), default=np.nan)}


def _agreement(
    mean: dict[str, dict[str, np.ndarray]], names: Mapping[str, Sequence[str]], correlated: tuple[str, int] | None
) -> dict[str, object]:
    group, place = correlated or (None, 0)
    facts: dict[str, object] = {
        "correlated_attribute": group,
        "correlated_class": None if group is None else names[group][place],
        "correlated_effect": np.nan if group is None else mean["ablate"][group][place],
    }
    found: dict[str, tuple[float, float, bool | None]] = {kind: (np.nan, np.nan, None) for kind in KINDS}
    for kind, part in mean.items():
        if group is not None and len(part[group]) > 1 and part[group].any():
            effect = part[group][place]
            rank = (part[group] > effect).sum() + ((part[group] == effect).sum() - 1) / 2
            found[kind] = rank, 1 - rank / (len(part[group]) - 1), bool(effect > 0)
    facts |= zip(("rank", "agreement", "sign_agrees"), found["ablate"], strict=True)
    _rank, facts["agreement_control"], facts["sign_agrees_control"] = found["control"]
    return facts | {"agreement_steered": found["steer"][1]}


def _most(effects: np.ndarray, names: Sequence[str], top: int, key: tuple[int, str, str]) -> list[tuple]:
    """Returns rows of `effects` for the classes with the largest effects, from effects [images, classes]."""
    mean, images = effects.mean(0), len(effects)
    error = effects.std(0, ddof=1) / np.sqrt(images) if images > 1 else np.full(len(mean), np.nan)
    order = np.argsort(-abs(mean), kind="stable")[:top]
    return [(*key, names[i], mean[i], error[i], images) for i in order]
