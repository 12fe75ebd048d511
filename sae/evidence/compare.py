"""Two experiments side by side: their latents, matched on the images that both have, and their measures.

A latent is matched by its strongest activation on each image. So the two ViTs may differ in width, in patches and in
the tokens that their SAEs read. The price: latents that fire on the same images, but at different places, match too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from sae import images
from sae.errors import InputError
from sae.evidence import matching, summary
from sae.evidence.measures import COMPARED, FOUND
from sae.latent_codes import Codes

FEWEST = 20  # images, with fewer of which chance matches most latents
MOST = 4000  # images; more take time and change no correlation that a reader would notice
THIS, OTHER = "this", "other"
LATENTS = ["of", "layer", "k", "method", "seed", "latent", "fires", "match_layer", "match_k", "match_method"]
LATENTS += [
    "match_seed",
    "match",
    "r",
    "shuffled",
    "random",
    "name",
    "stability",
    "outcome",
]  # columns of `Comparison.latents`
PAIR = ["layer", "k", "method", "seed", "other_layer", "other_k", "other_method", "other_seed"]
READ = ["latent", "top_attribute", "top_name", "stability_correlation"]
_RANDOM = "random"  # the baseline that is the control


class Kind(NamedTuple):
    """What the SAEs of all layers have in common."""

    k: int
    method: str
    seed: int


@dataclass(frozen=True)
class Experiment:
    """One of the two experiments.

    Attributes:
        name: of the experiment; the two names differ.
        reference: facts about its ViT, see reference.json in docs/data.md.
        manifest: of its images.
        codes: (layer, kind) -> codes of an SAE, or of its baseline `random` if it has one.
        summaries: tables of `summary.table` with layer, k, method and seed, of the same dictionaries.
        latents: tables of latents (`judge.judge`) of the SAEs, with layer, k, method and seed; the columns `READ`.
        top: tables of the latents' images (`ranking.images`), likewise; the first few of each latent's strongest.
    """

    name: str
    reference: Mapping[str, Any]
    manifest: pd.DataFrame
    codes: Mapping[tuple[int, Kind], Codes]
    summaries: pd.DataFrame
    latents: pd.DataFrame
    top: pd.DataFrame

    @property
    def blocks(self) -> int:
        """The number of its ViT's blocks."""
        return self.reference["geometry"]["blocks"]

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of its SAEs, sorted."""
        return sorted({kind for _layer, kind in self.codes if kind.method != _RANDOM})

    def strongest(self, kind: Kind, ids: np.ndarray) -> dict[int, sparse.csr_array]:
        """Returns layer -> the strongest activations [n, F] of a kind on these ranked images [n], in their order."""
        found = {}
        for layer in sorted(layer for layer, other in self.codes if other == kind):
            codes = self.codes[layer, kind]
            assert codes.images is not None and codes.image_ids is not None  # ranked dictionaries have them
            found[layer] = codes.images[np.searchsorted(codes.image_ids, ids)]
        return found


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Explains what goes wrong while the other experiment's files are read: an older version lacks columns, say.

    Raises:
        InputError: they cannot be read.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except InputError as error:
        raise InputError(f"with {name}: {error}") from error
    except Exception as error:  # of many kinds: each means that these are files of another version, or damaged
        what = str(error).partition("\n")[0]
        raise InputError(f"with {name}: its files cannot be read: {what}; run that experiment again") from error


def shared(own: Experiment, other: Experiment) -> pd.DataFrame:
    """Returns the ranked images that both experiments have, by the hash of their content.

    Returns:
        sha256, id (in the own manifest; ascending), other_id, held_out (in both).
    """
    tables = []
    for one in (own, other):
        ranked = next(iter(one.codes.values())).image_ids
        used = images.used(one.manifest)
        tables.append(used.loc[used["id"].isin(ranked), ["id", "sha256", "split"]])
    both = tables[0].merge(tables[1].rename(columns={"id": "other_id"}), on="sha256", suffixes=("", "_other"))
    both["held_out"] = (both["split"] == images.HELD_OUT) & (both["split_other"] == images.HELD_OUT)
    return both.sort_values("id", ignore_index=True)[["sha256", "id", "other_id", "held_out"]]


def chosen(both: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of `shared` on which latents are matched: those held out in both experiments.

    If these are fewer than `FEWEST`, train images join them; if they still are, no row is left. Of more than `MOST`
    images, a sample by content.
    """
    held = both[both["held_out"]]
    rows = images.sample(held if len(held) >= FEWEST else both, MOST)
    return rows if len(rows) >= FEWEST else rows.iloc[:0]


def closest(own: Sequence[Kind], others: Sequence[Kind]) -> list[tuple[Kind, Kind]]:
    """Returns each own kind with the other experiment's kind that is compared with it.

    Kinds of the same method come first, then those of the nearest k by its ratio, then those of the same seed.
    """

    def distance(kind: Kind, other: Kind) -> tuple[Any, ...]:
        return kind.method != other.method, abs(np.log(kind.k / other.k)), kind.seed != other.seed, other

    return [(kind, min(others, key=lambda other: distance(kind, other))) for kind in own]


def nearest(layer: int, blocks: int, others: Sequence[int], other_blocks: int) -> int:
    """Returns the layer of another ViT at the nearest relative depth, the earlier one of two that are as near."""
    return min(others, key=lambda other: (abs((layer + 1) * other_blocks - (other + 1) * blocks), other))


def match(own: Experiment, other: Experiment, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Matches the latents of each SAE with those of the other experiment's SAEs of the closest kind, at every layer.

    The similarity of two latents is the correlation of their strongest activations on the images. It stands beside two
    controls: the same with shuffled images, and the same with the other experiment's random dictionaries, the stricter
    one: random directions follow the colour or the brightness of an image, too.

    Args:
        rows: from `chosen`; at least `FEWEST`.

    Returns:
        A row per latent of both experiments: of (`this` or `other`), layer, k, method, seed, latent, fires (on any of
        the images); match_layer, match_k, match_method, match_seed, match: the latent of the other experiment with
        which it correlates most, over all layers (-1 if it is silent); r; shuffled and random: its highest correlation
        with the latents of shuffled images, and of random dictionaries (NaN if it is silent or there are none).

        And a row per pair of SAEs and measure, with the columns `PAIR`: measure `similarity` (the mean over latents of
        their highest correlation with the other SAE's latents) and `found` (the share of latents for which it reaches
        `FOUND`), in value, shuffled and random of the own latents, and value_other, shuffled_other and random_other of
        the other's.
    """
    rng, latents, pairs = np.random.default_rng(0), [], []
    ids, other_ids = rows["id"].to_numpy(), rows["other_id"].to_numpy()
    for kind, other_kind in closest(own.kinds, other.kinds):
        mine, theirs = own.strongest(kind, ids), other.strongest(other_kind, other_ids)
        random = other.strongest(other_kind._replace(method=_RANDOM), other_ids)
        own_random = own.strongest(kind._replace(method=_RANDOM), ids)
        moved = {layer: matching.shuffled_rows(z, 1, rng) for layer, z in theirs.items()}
        r, shuffled = _matched(mine, theirs), _matched(mine, moved)
        sides = (
            _Side(THIS, kind, other_kind, mine, r, shuffled, _matched(mine, random)),
            _Side(
                OTHER, other_kind, kind, theirs, _turned(r), _turned(shuffled), _turned(_matched(own_random, theirs))
            ),
        )
        latents += [side.latents(layer) for side in sides for layer in side.strongest]
        for layer, other_layer in r:
            where = dict(zip(PAIR, (layer, *kind, other_layer, *other_kind), strict=True))
            one, two = sides[0].means(layer, other_layer), sides[1].means(other_layer, layer)
            for measure in one:
                numbers = one[measure] | {f"{name}_other": value for name, value in two[measure].items()}
                pairs.append({**where, "measure": measure, **numbers})
    return pd.concat(latents, ignore_index=True), pd.DataFrame(pairs)


# (layer, other layer) -> the highest correlation of each latent of the layer with those of the other layer, and with
# which of them; then the same of the other layer's latents.
_Matched = dict[tuple[int, int], tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]]


def _matched(a: Mapping[int, sparse.csr_array], b: Mapping[int, sparse.csr_array]) -> _Matched:
    found: _Matched = {}
    for layer, other in product(a, b):
        r = matching.correlation(a[layer], b[other])
        found[layer, other] = (r.max(1), r.argmax(1)), (r.max(0), r.argmax(0))
    return found


def _turned(found: _Matched) -> _Matched:
    return {(b, a): (two, one) for (a, b), (one, two) in found.items()}


@dataclass(frozen=True)
class _Side:
    """The SAEs of one kind, by layer, with their matches in the other experiment and in the controls."""

    of: str
    kind: Kind
    other_kind: Kind
    strongest: Mapping[int, sparse.csr_array]
    r: _Matched
    shuffled: _Matched
    random: _Matched

    def latents(self, layer: int) -> pd.DataFrame:
        """Returns the rows of `match` about the latents of a layer."""
        fires = self._fires(layer)
        layers = [there for here, there in self.r if here == layer]
        r, match = (np.stack([self.r[layer, there][0][part] for there in layers]) for part in (0, 1))
        best, latent = r.argmax(0), np.arange(len(fires))
        columns: dict[str, Any] = {
            "latent": latent,
            "fires": fires,
            "match_layer": np.where(fires, np.array(layers)[best], -1),
        }
        columns |= {f"match_{name}": value for name, value in self.other_kind._asdict().items()}
        columns |= {"match": np.where(fires, match[best, latent], -1), "r": np.where(fires, r.max(0), np.nan)}
        for name, control in (("shuffled", self.shuffled), ("random", self.random)):
            highest = [found[0][0] for (here, _there), found in control.items() if here == layer]
            columns[name] = np.where(fires, np.max(highest, axis=0), np.nan) if highest else np.nan
        return pd.DataFrame({"of": self.of, "layer": layer, **self.kind._asdict(), **columns})

    def means(self, layer: int, other_layer: int) -> dict[str, dict[str, float]]:
        """Returns the numbers of `match` about the SAEs of two layers, from this side."""
        fires = self._fires(layer)
        numbers: dict[str, dict[str, float]] = {"similarity": {}, "found": {}}
        for name, table in (("value", self.r), ("shuffled", self.shuffled), ("random", self.random)):
            known = (layer, other_layer) in table
            r = table[layer, other_layer][0][0][fires] if known else np.full(1, np.nan)
            numbers["similarity"][name] = float(r.sum() / max(len(r), 1))
            numbers["found"][name] = float((r >= FOUND).sum() / max(len(r), 1)) if known else np.nan
        return numbers

    def _fires(self, layer: int) -> np.ndarray:
        return np.asarray(self.strongest[layer].sum(0) > 0)


def measures(own: Experiment, other: Experiment) -> pd.DataFrame:
    """Compares each SAE with the other experiment's SAE of the closest kind at the nearest relative depth.

    Returns:
        A row per SAE and measure, with the columns `PAIR`: measure, value, value_other, random and random_other (of the
        random dictionaries; NaN if there are none), gain, low, high, seeds and verdict, see `summary.compare`: gain is
        above 0 and the verdict `better` where the own SAE is better. seeds: of the experiment that has fewer.
    """
    tables = []
    columns = ["layer", "k", "seed", "measure"]
    for kind, other_kind in closest(own.kinds, other.kinds):
        layers = sorted(layer for layer, one in other.codes if one == other_kind)
        for layer in sorted(layer for layer, one in own.codes if one == kind):
            there = nearest(layer, own.blocks, layers, other.blocks)
            here = {"layer": layer, "k": kind.k, "seed": kind.seed}
            parts = {THIS: _of(own, layer, kind), OTHER: _of(other, there, other_kind)}
            parts = {name: part.assign(**here, method=name) for name, part in parts.items()}
            where = {f"other_{name}": value for name, value in {"layer": there, **other_kind._asdict()}.items()}
            controls = {"random": _of(own, layer, kind._replace(method=_RANDOM))}
            controls["random_other"] = _of(other, there, other_kind._replace(method=_RANDOM))
            known = {name: part.set_index("measure")["value"] for name, part in controls.items()}
            facts = parts[THIS][columns].assign(dictionary=kind.method, **where)
            for name, values in known.items():
                facts[name] = facts["measure"].map(values).astype(float)
            tables.append((kind, pd.concat(parts.values()), facts))
    compared = []
    for k, method in dict.fromkeys((kind.k, kind.method) for kind, *_ in tables):
        group = [part for kind, *part in tables if (kind.k, kind.method) == (k, method)]
        table = summary.compare(pd.concat([part for part, _facts in group]), [THIS], [OTHER])
        table = table.merge(pd.concat([facts for _part, facts in group]), on=columns)
        others = table.groupby(["layer", "measure"])["other_seed"].transform("nunique")
        compared.append(table.assign(seeds=np.minimum(table["seeds"], others)))
    table = pd.concat(compared, ignore_index=True)
    table = table.drop(columns=["method", "baseline"])
    table = table.rename(columns={"dictionary": "method", "value_baseline": "value_other"})
    table = table[table["measure"].isin(COMPARED)]
    place = table["measure"].map(COMPARED.index)
    table = table.assign(place=place).sort_values([*PAIR, "place"], ignore_index=True)
    numbers = ["value", "value_other", "random", "random_other", "gain", "low", "high", "seeds", "verdict"]
    return table[[*PAIR, "measure", *numbers]]


def _of(experiment: Experiment, layer: int, kind: Kind) -> pd.DataFrame:
    table = experiment.summaries
    return table[(table["layer"] == layer) & (table[["k", "method", "seed"]] == list(kind)).all(axis=1)]


@dataclass(frozen=True)
class Comparison:
    """Two experiments, compared.

    Attributes:
        own, other: the experiments.
        both: the images that both have, from `shared`.
        rows: those on which latents were matched, from `chosen`.
        latents: the latents of `match`, with the columns `LATENTS`: also name (of the confirmed class, or None),
            stability (correlation with their counterparts in other seeds) and outcome: `both` (r reaches `FOUND`),
            `one` (it does not, but stability does), `unsure` (neither does: the latent may be one of this training
            alone) or `silent`. Empty if there are no rows.
        table: the pairs of `match` and the rows of `measures`.
    """

    own: Experiment
    other: Experiment
    both: pd.DataFrame
    rows: pd.DataFrame
    latents: pd.DataFrame
    table: pd.DataFrame


def compare(own: Experiment, other: Experiment) -> Comparison:
    """Compares two experiments: their latents, if they share enough images, and their measures."""
    both, measured = shared(own, other), measures(own, other)
    rows = chosen(both)
    if not len(rows):
        return Comparison(own, other, both, rows, pd.DataFrame(columns=LATENTS), measured)
    latents, pairs = match(own, other, rows)
    facts = pd.concat([one.latents.assign(of=name) for name, one in ((THIS, own), (OTHER, other))])
    facts = facts.rename(columns={"stability_correlation": "stability"})
    attribute, name = facts.pop("top_attribute"), facts.pop("top_name")
    facts["name"] = name.where(attribute.isna() | attribute.eq("label"), attribute + ": " + name)
    point = ["of", "layer", "k", "method", "seed", "latent"]
    latents = latents.merge(facts[[*point, "name", "stability"]], on=point, how="left")
    conditions = [~latents["fires"], latents["r"] >= FOUND, latents["stability"] >= FOUND]
    latents["outcome"] = np.select(conditions, ["silent", "both", "one"], "unsure")
    return Comparison(own, other, both, rows, latents[LATENTS], pd.concat([pairs, measured], ignore_index=True))
