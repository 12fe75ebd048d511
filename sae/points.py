"""All that is measured at one point of the grid, for SAEs and baselines alike: fidelity, ranking, evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from torch import nn

from sae import images
from sae.activations import Activations
from sae.autoencoder import SparseAutoencoder
from sae.codes import Codes, encode
from sae.evidence import classes, fidelity, matching, summary
from sae.evidence.ranking import Ranking, rank
from sae.files import read_json
from sae.geometry import Geometry

_MOST_RANKED = 50_000  # images: each takes about 10 kB
_MOST_PROBED = 4000


@dataclass(frozen=True)
class Layer:
    """One layer's store and what is known of its images.

    shards: all activation shards of the layer. manifest: of all images. model: model.json. statistics: statistics.json.
    """

    shards: Sequence[str | Path]
    manifest: pd.DataFrame
    model: Mapping[str, Any]
    statistics: Mapping[str, Any]

    @classmethod
    def read(cls, inputs: Any) -> Layer:
        """Reads a rule's inputs of these names."""
        facts = (read_json(inputs.model), read_json(inputs.statistics))
        return cls(inputs.shards, pd.read_parquet(inputs.manifest), *facts)

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry(**self.model["geometry"])

    @cached_property
    def ranked(self) -> pd.DataFrame:
        """The rows of the images by which latents are judged: all used ones, or a choice by content of very many."""
        return images.sample(images.used(self.manifest), _MOST_RANKED)

    @property
    def centre(self) -> tuple[np.ndarray, float]:
        """The train set's mean vector [d] and scale."""
        return np.array(self.statistics["mean"]), self.statistics["scale"]

    def tokens(self, which: str, ids: Sequence[int] | None = None) -> Activations:
        """Returns the tokens of these images (of all ranked ones), without checking the shards again."""
        return Activations.open(self.shards, which, self.ranked["id"] if ids is None else ids, verify=False)


@dataclass(frozen=True)
class Evidence:
    """Tables about one dictionary; docs/data.md describes every column."""

    scores: pd.DataFrame
    probes: pd.DataFrame
    causes: pd.DataFrame
    effects: pd.DataFrame
    localisation: pd.DataFrame
    summary: pd.DataFrame

    def tables(self) -> dict[str, pd.DataFrame]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def evaluate(
    sae: SparseAutoencoder, layer: Layer, model: nn.Module, logits: np.ndarray, ks: Sequence[int], batch: int
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Returns one row of numbers on held-out images, and FVU at other ks; see `metrics` and `faithfulness`.

    Args:
        logits: the untouched model's, of the images in layer.model["ids"].
        batch: images in one forward pass.
    """
    from sae import vit  # here: timm takes seconds to import, and ranking does without
    from sae.evidence import splice  # here: timm takes seconds to import, and ranking does without

    held_out = layer.tokens(sae.config.tokens, images.used(layer.manifest, images.HELD_OUT)["id"])
    ids = layer.model["ids"]
    truth = splice.targets(layer.manifest.set_index("id").loc[ids], vit.class_names(model))
    row = fidelity.reconstruction(sae, held_out)
    row |= splice.evaluate(model, sae, layer.tokens("all", ids), logits, truth, layer.centre[0], batch)
    return row, fidelity.at_other_ks(sae, held_out, ks)


def ranked(
    sae: SparseAutoencoder,
    others: Mapping[int, SparseAutoencoder],
    seed: int,
    layer: Layer,
    top: int,
    top_classes: int,
    support: int,
) -> Ranking:
    """Returns the ranking, each latent with its stability against the same method with other seeds.

    Args:
        others: seed -> dictionary, at least one.
        seed: of `sae`.
    """
    median = layer.statistics["norms"]["patch"]["median"]
    x = layer.tokens(sae.config.tokens)
    found = rank(sae, x, layer.ranked, layer.geometry, median, top, top_classes, support)
    held_out = layer.tokens(sae.config.tokens, layer.model["ids"])
    dictionaries = {seed: sae} | dict(others)
    stable = matching.stability(
        {s: d.W_dec.cpu().numpy() for s, d in dictionaries.items()},
        {s: encode(d, held_out).z for s, d in dictionaries.items()},
    )
    stable = stable[stable["seed"] == seed].drop(columns=["seed", "fires"])
    return replace(found, latents=found.latents.merge(stable, on="latent"))


def gather(
    sae: SparseAutoencoder,
    other: SparseAutoencoder,
    layer: Layer,
    model: nn.Module,
    ranking: Ranking,
    embedding: np.ndarray,
    cover: np.ndarray | None,
    latents: int,
    per_latent: int,
    dense: bool = True,
    seed: int = 0,
) -> Evidence:
    """Returns the evidence for and against the latents of one dictionary.

    Args:
        other: the dictionary of the first of the ranking's `partner_seeds`.
        ranking: from `ranked`.
        embedding: of the ranked images [n, D], not of this layer; see `monosemanticity`.
        cover: share of each patch that the object covers, for the held-out images in layer.model["ids"] [m, patches];
            None where objects are not known.
        latents, per_latent: how many latents are ablated, and on how many images each.
        dense: probe the raw activations too, which are the same for all dictionaries of a layer.
    """
    from sae.evidence import interventions, monosemanticity, probing, token_types

    rows, ids = layer.ranked, layer.model["ids"]
    train = (rows["split"] != images.HELD_OUT).to_numpy()
    labels = classes.attributes(rows)
    a = ranking.activations
    held_out = layer.tokens(sae.config.tokens, ids)
    codes = encode(sae, held_out)
    w = summary.weights(len(ids))
    parts = {"fvu": summary.fidelity(*_reconstructed(sae, held_out, codes), w)}

    score = monosemanticity.monosemanticity(a, embedding)
    mean, deviation = monosemanticity.chance(a, embedding)
    table = pd.DataFrame({"latent": np.arange(a.shape[1]), "monosemanticity": score})
    table["monosemanticity_shuffled"] = monosemanticity.shuffled(a, embedding, np.random.default_rng(seed))
    table["monosemanticity_chance"], table["monosemanticity_deviation"] = mean, deviation

    place = pd.Index(rows["id"]).get_indexer(ids)
    here = {name: values[place] for name, values in labels.items()}
    if len(ranking.recovery):
        said, true, _known = summary.answers(codes.images, ranking.recovery, here)
        parts |= summary.recovery(said, true, w)
        best = ranking.classes[ranking.classes["q"].notna()].sort_values("mcc", ascending=False, kind="stable")
        best = best.drop_duplicates("latent")
        alive = int((ranking.latents["status"] == "alive").sum())
        parts["class_selectivity"] = summary.selectivity(*summary.answers(codes.images, best, here), w, alive)

    probed = np.flatnonzero(rows["id"].isin(images.sample(rows, _MOST_PROBED)["id"]))
    raw = _dense(layer.tokens(sae.config.tokens))[probed] if dense else None
    found = probing.probe(a[probed], raw, {name: values[probed] for name, values in labels.items()}, train[probed])
    if len(found.table):
        chosen = summary.weights(int((~train[probed]).sum()))
        parts |= {f"probe_{size}": summary.probed(found, size, chosen) for size in (1, 5)}

    twin = encode(other, held_out)
    partner = ranking.latents["partners_by_correlation"].str[0].to_numpy(np.int64)
    parts["stability"] = summary.stability(codes, twin, partner, w)

    drawn = interventions.choose(codes, latents, seed)
    # What correlates, be it confirmed or not; classes with too few images to be tested where there are no others.
    named = ranking.classes.assign(tested=ranking.classes["q"].notna())
    named = named.sort_values(["latent", "tested", "mcc"], ascending=[True, False, False])
    causes = interventions.measure(model, sae, layer.tokens("all", ids), codes, drawn, named, per_latent, seed)
    parts |= summary.causes(causes.latents, seed)

    local = pd.DataFrame()
    if cover is not None and sae.config.tokens != "class" and len(ranking.recovery):
        patches = _patches(codes, cover.shape[1])
        shown = {
            (name, value): np.asarray(here[name] == value)
            for name in ("shape", "colour", "texture", "size")
            for value in here[name].categories
        }
        local, hit, seen = token_types.localisation(patches, cover, ranking.recovery, shown)
        if seen.any():
            parts["pointing"] = summary.pointing(hit, seen, w)
    return Evidence(table, found.table, causes.latents, causes.effects, local, summary.table(parts))


def _dense(x: Activations) -> np.ndarray:
    """Returns each image's mean and maximum over its tokens, float32 [images, 2d]."""
    parts = [(block.astype(np.float32).mean(1), block.max(1)) for _ids, block in x.blocks(256)]
    return np.concatenate([np.concatenate(part, 1) for part in parts]).astype(np.float32)


def _reconstructed(sae: SparseAutoencoder, x: Activations, codes: Codes) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and its reconstruction, [images, tokens, d]."""
    exact = np.concatenate([block for _ids, block in x.blocks(256)]).astype(np.float32)
    mean, scale = sae.mean.cpu().numpy(), float(sae.scale)
    x_hat = (codes.z @ sae.W_dec.cpu().numpy() + sae.b_dec.cpu().numpy()) / scale + mean
    return exact, x_hat.reshape(exact.shape)


def _patches(codes: Codes, patches: int) -> Codes:
    """Returns the codes of the patches alone."""
    keep = np.arange(codes.z.shape[0]).reshape(-1, codes.tokens)[:, -patches:].ravel()
    return replace(codes, z=codes.z[keep], norms=codes.norms[keep], tokens=patches)


def tables(ranking: Ranking, layer: Layer) -> dict[str, pd.DataFrame]:
    """Returns the ranking's tables as they are written; `activations` by image, latent and activation."""
    parts = {field.name: getattr(ranking, field.name) for field in fields(ranking)}
    matrix = parts.pop("activations")
    image = np.repeat(layer.ranked["id"].to_numpy(), np.diff(matrix.indptr))
    return parts | {
        "activations": pd.DataFrame({"image_id": image, "latent": matrix.indices, "activation": matrix.data})
    }


def read_ranking(inputs: Any, layer: Layer, latents: int) -> Ranking:
    """Reads what `tables` returned from a rule's inputs of these names."""
    parts = {field.name: pd.read_parquet(inputs[field.name]) for field in fields(Ranking)}
    entries = parts.pop("activations")
    row = pd.Index(layer.ranked["id"]).get_indexer(entries["image_id"])
    pattern = entries["activation"].to_numpy(np.float32), (row, entries["latent"].to_numpy())
    matrix = sparse.csr_array(sparse.coo_array(pattern, (len(layer.ranked), latents)))
    return Ranking(**parts, activations=matrix)


def embedding(files: Any, named: str | None, layer: int, facts: Layer) -> np.ndarray:
    """Returns the ranked images' embedding [n, D] that is not of this layer: features; pixels where that is theirs.

    Args:
        files: features.npy and pixels.npy.
        named: the model that made the features; None: the one under study.
    """
    own = named is None and layer == facts.geometry.blocks - 1
    ranked = images.used(facts.manifest)["id"].isin(facts.ranked["id"])
    return np.load(files[1] if own else files[0])[ranked.to_numpy()]


def cover(paths: Sequence[str]) -> np.ndarray | None:
    """Returns the objects' cover of the patches, where it is known."""
    return np.load(paths if isinstance(paths, str) else paths[0]) if paths else None


def seed_of(path: str | Path) -> int:
    """Returns the seed that stands in a grid point's path."""
    return int(next(part for part in Path(path).parts if part.startswith("seed=")).removeprefix("seed="))
