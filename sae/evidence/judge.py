"""All evidence about the latents of one dictionary, as tables: a function of files, without the ViT or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sae.evidence import (
    attribution,
    classes,
    coherence,
    interventions,
    matching,
    monosemanticity,
    one_factor,
    probing,
    summary,
    token_types,
)
from sae.evidence.attribution import Attributions
from sae.evidence.interventions import Responses
from sae.evidence.layer_facts import LayerFacts, probed
from sae.evidence.ranking import Ranking, rank
from sae.geometry import Geometry
from sae.images import HELD_OUT
from sae.latent_codes import Codes

_OBJECT = ("shape", "colour", "texture", "size")  # attributes of the object whose coverage is known


@dataclass(frozen=True)
class Images:
    """The images on which latents are evaluated.

    Attributes:
        rows: the manifest's rows of the ranked images.
        sample: ids of the held-out ones that went through the ViT.
        embedding: of the ranked images [n, D], not of the layer under study; see `monosemanticity`.
        coverage: the share of each patch that the object covers, for the sample [m, patches]; None where unknown.
        names: the classes of the ViT's head, by group.
    """

    rows: pd.DataFrame
    sample: np.ndarray
    embedding: np.ndarray
    coverage: np.ndarray | None
    names: dict[str, list[str]]


@dataclass(frozen=True)
class Dictionary:
    """A dictionary and its codes.

    Attributes:
        seed: of its training.
        decoder: W_dec [F, d].
        codes: its latents.
        responses, attributions: its measured and its estimated effects on the ViT; None for a second seed.
    """

    seed: int
    decoder: np.ndarray
    codes: Codes
    responses: Responses | None = None
    attributions: Attributions | None = None


@dataclass(frozen=True)
class Limits:
    """The sizes of the ranking's tables, and the support of a class: the config's section `ranking`."""

    images: int = 16
    classes: int = 10
    support: int = 5


def judge(
    dictionary: Dictionary,
    others: Mapping[int, Dictionary],
    shown: Images,
    facts: LayerFacts,
    geometry: Geometry,
    tokens: str,
    limits: Limits,
) -> dict[str, pd.DataFrame]:
    """Returns the tables of the ranking and the evidence by name; docs/data.md describes every column.

    Args:
        others: dictionaries of other seeds; without them, nothing is said of the stability.
        tokens: which tokens the dictionary reads.
    """
    codes, rows = dictionary.codes, shown.rows
    assert codes.images is not None and codes.error is not None
    assert dictionary.responses is not None and dictionary.attributions is not None
    sample = codes.of(shown.sample)
    ranking = rank(codes, rows, geometry, geometry.select(tokens), limits.images, limits.classes, limits.support)
    stable = matching.stability(
        (dictionary.decoder, sample.z),
        {seed: (other.decoder, other.codes.of(shown.sample).z) for seed, other in others.items()},
    )
    latents = ranking.latents.merge(stable.drop(columns="fires"), on="latent")
    latents = latents.merge(attribution.sizes(dictionary.attributions, sample), on="latent")
    latents = latents.merge(coherence.coherence(sample, geometry.patches), on="latent")
    latents = latents.merge(one_factor.table(codes.changes, codes.latents), on="latent")
    tables = {"latents": latents, "images": ranking.images, "classes": ranking.classes}
    tables["best_latents"] = ranking.best_latents
    tables["monosemanticity"] = _monosemanticity(codes, shown.embedding)

    labels = classes.attributes(rows)
    train = (rows["split"] != HELD_OUT).to_numpy()
    place = probed(rows)
    read = {name: values[place] for name, values in labels.items()}
    probes = probing.probe(codes.images[place], read, train[place])
    tables["probes"] = probes.table

    # The correlated class, confirmed or not; classes with too few images to be tested come last.
    named = ranking.classes.assign(tested=ranking.classes["q"].notna())
    named = named.sort_values(["latent", "tested", "mcc"], ascending=[True, False, False])
    tables["interventions"], tables["effects"] = interventions.tables(dictionary.responses, shown.names, named)

    tables["attributions"] = attribution.table(dictionary.attributions, sample, shown.names)

    patches = geometry.count
    located = None
    if shown.coverage is not None and codes.tokens >= patches and len(ranking.best_latents):
        here = _of_sample(labels, rows, shown.sample)
        objects = {
            (name, value): np.asarray(here[name] == value) for name in _OBJECT for value in here[name].categories
        }
        located = token_types.localisation(sample.last(patches), shown.coverage, ranking.best_latents, objects)
    tables["localisation"] = located[0] if located else pd.DataFrame()

    drawn = summary.weights(len(shown.sample))
    parts = {"fvu": summary.fidelity(codes.error, facts.spread, drawn)}
    parts |= _classes(ranking, sample, _of_sample(labels, rows, shown.sample), drawn)
    if len(probes.table):
        chosen = summary.weights(int((~train[place]).sum()))
        parts |= {f"probe_{size}": summary.probed(probes, size, chosen) for size in (1, 5)}
    if others:
        first = others[min(others)].codes.of(shown.sample)
        partner = latents["partners_by_correlation"].str[0].to_numpy(np.int64)
        parts["stability"] = summary.stability(sample, first, partner, drawn)
    parts |= summary.interventions(tables["interventions"])
    if codes.changes is not None:
        parts["one_factor"] = one_factor.summarised(codes.changes)
    if located and located[2].any():
        parts["pointing"] = summary.pointing(located[1], located[2], drawn)
    tables["summary"] = summary.table(parts)
    return tables


def _monosemanticity(codes: Codes, embedding: np.ndarray) -> pd.DataFrame:
    strongest = codes.images
    table = pd.DataFrame({"latent": np.arange(codes.latents)})
    mixed = embedding[np.random.default_rng(0).permutation(len(embedding))]
    table["monosemanticity"] = monosemanticity.monosemanticity(strongest, embedding)
    table["monosemanticity_shuffled"] = monosemanticity.monosemanticity(strongest, mixed)
    mean, deviation = monosemanticity.chance(strongest, embedding)
    return table.assign(monosemanticity_chance=mean, monosemanticity_deviation=deviation)


def _of_sample(
    labels: Mapping[str, pd.Categorical], rows: pd.DataFrame, sample: np.ndarray
) -> dict[str, pd.Categorical]:
    place = pd.Index(rows["id"]).get_indexer(sample)
    return {name: values[place] for name, values in labels.items()}


def _classes(
    ranking: Ranking, sample: Codes, labels: Mapping[str, pd.Categorical], drawn: np.ndarray
) -> dict[str, tuple[float, np.ndarray, int]]:
    """Returns the measures of classes by their best latents, and of latents by their best classes."""
    if not len(ranking.best_latents):
        return {}
    answered, true, _known = summary.answers(sample.images, ranking.best_latents, labels)
    parts = summary.recovery(answered, true, drawn)
    best = classes.best_classes(ranking.classes).reset_index()
    alive = int((ranking.latents["status"] == "alive").sum())
    parts["class_selectivity"] = summary.selectivity(*summary.answers(sample.images, best, labels), drawn, alive)
    return parts
