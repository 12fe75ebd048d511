"""Two experiments whose matches are known: the same latents, renumbered and on renamed images, and others."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import small

from sae.errors import InputError
from sae.evidence import compare, compare_page
from sae.evidence.compare import Kind
from sae.figures import compare as figures
from sae.figures import style

IMAGES, LATENTS = 200, 12
KIND = Kind(4, "topk", 0)


def sparse(seed, images=IMAGES, latents=LATENTS):
    """Latents [images, 2 tokens, F], each active on its own tenth of the images."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(1, 2, (images, 2, latents)) * (rng.random((images, 1, latents)) < 0.1)
    z[0] = 1  # none is silent
    return z


def experiment(name, layers, first=0, order=None, blocks=6, kind=KIND, random=True, stability=0.9, fvu=0.2):
    """An experiment on the images `first` to `first + IMAGES`, its files in this order; one of two images is held out.

    Args:
        layers: layer -> latents [images, tokens, F].
    """
    content = np.arange(first, first + IMAGES)[np.arange(IMAGES) if order is None else order]
    split = np.where(content % 2, "held_out", "train")
    manifest = pd.DataFrame({"id": np.arange(IMAGES), "status": "ok", "split": split})
    manifest["sha256"] = [f"{i:064d}" for i in content]
    saes = {(layer, kind): z for layer, z in layers.items()}
    controls = {(layer, kind._replace(method="random")): sparse(90 + layer) for layer in layers} if random else {}
    codes = {key: small.coded(z if order is None else z[order]) for key, z in (saes | controls).items()}
    latents, summaries, top = [], [], []
    for layer, one in codes:
        where = {"layer": layer, **one._asdict()}
        values = {one.method: 0.9 if one.method == "random" else fvu}
        summaries.append(small.summaries(values, "fvu", layer, one.k, one.seed))
        if one.method != "random":
            facts = {"latent": np.arange(codes[layer, one].latents), "top_attribute": "shape", "top_name": "star"}
            latents.append(pd.DataFrame(facts | {"stability_correlation": stability} | where))
            top.append(pd.DataFrame({"latent": facts["latent"], "image_id": 0} | where))
    reference = {"geometry": {"blocks": blocks, "patches": [7, 7]}, "model": {"name": "vit"}, "weights": None}
    return compare.Experiment(name, reference, manifest, codes, *map(pd.concat, (summaries, latents, top)))


def test_renumbered_latents_are_matched_one_to_one_whatever_the_images_are_called():
    rng = np.random.default_rng(0)
    number, order = rng.permutation(LATENTS), rng.permutation(IMAGES)
    own = experiment("one", {1: sparse(1), 3: sparse(3)})
    # The same latents, twice as strong, in another order, on other layers of a deeper ViT, with the images renamed.
    other = experiment("two", {5: 2 * sparse(3)[..., number], 9: sparse(1)[..., number]}, order=order, blocks=12)
    found = compare.compare(own, other)
    rows, latents, table = found.rows, found.latents, found.table
    assert len(rows) == IMAGES / 2 and rows["held_out"].all()
    mine = latents[latents["of"] == "this"].set_index(["layer", "latent"])
    for layer, there in ((1, 9), (3, 5)):
        here = mine.loc[layer]
        assert (here["match_layer"] == there).all() and (number[here["match"]] == here.index).all()
    assert latents["r"].min() > 0.999 and (latents["outcome"] == "both").all()
    assert latents["shuffled"].max() < 0.5 and latents["random"].max() < 0.5  # by chance
    similarity = table[table["measure"] == "similarity"].set_index(["layer", "other_layer"])
    assert similarity.loc[[(1, 9), (3, 5)], ["value", "value_other"]].min(axis=None) > 0.999
    assert similarity.loc[[(1, 5), (3, 9)], ["value", "value_other"]].max(axis=None) < 0.5
    said = " ".join(compare_page.sentences(found))
    assert "100% of the latents of one have a counterpart in two (0% in its random dictionaries)" in said
    assert "Layer 1 of one is most similar to layer 9 of two" in said and "layer 3 to layer 5 (1.00)" in said
    assert "Latents were matched on 100 images that are held out in both experiments." in said


def test_unrelated_latents_are_of_one_experiment_alone_if_another_seed_finds_them():
    own = experiment("one", {1: sparse(1)})
    other = experiment("two", {1: sparse(2, latents=20)}, random=False, stability=np.nan)
    found = compare.compare(own, other)
    latents, table = found.latents, found.table
    assert latents.groupby("of")["outcome"].agg(set).to_dict() == {"this": {"one"}, "other": {"unsure"}}
    assert latents.loc[latents["of"] == "this", "random"].isna().all()  # the other experiment has no random dictionary
    assert latents.loc[latents["of"] == "other", "random"].notna().all()
    row = table[table["measure"] == "found"].iloc[0]
    assert row["value"] == row["value_other"] == row["shuffled"] == 0
    assert np.isnan(row["random"]) and row["random_other"] == 0


def test_several_kinds_beside_one_count_each_latent_of_the_other_once():
    parts = [experiment("one", {1: sparse(seed)}, kind=Kind(k, "topk", 0)) for k, seed in ((4, 1), (8, 2))]
    tables = {name: pd.concat([getattr(p, name) for p in parts]) for name in ("summaries", "latents", "top")}
    own = replace(parts[0], codes=parts[0].codes | parts[1].codes, **tables)
    found = compare.compare(own, experiment("two", {1: sparse(1)}))  # the latents of k 4 alone
    (first, *_rest) = compare_page.sentences(found)
    assert "50% of the latents of one have" in first and "100% of those of two" in first
    for k, outcome in ((4, "both"), (8, "one")):
        bars = figures._layers(found.latents, (k, "topk"), found.table)
        assert len(bars["other", 1]) == LATENTS and (bars["other", 1]["outcome"] == outcome).all()


def test_seeds_that_share_a_counterpart_are_no_seeds_of_their_own():
    parts = [experiment("one", {1: sparse(seed)}, kind=Kind(4, "topk", seed)) for seed in range(3)]
    tables = {name: pd.concat([getattr(p, name) for p in parts]) for name in ("summaries", "latents", "top")}
    own = replace(parts[0], codes={key: z for p in parts for key, z in p.codes.items()}, **tables)
    measured = compare.measures(own, experiment("two", {1: sparse(1)}))
    assert len(measured) == 3 and (measured["seeds"] == 1).all()


def test_a_silent_latent_has_no_match():
    z = sparse(1)
    z[..., 3] = 0
    latents = compare.compare(experiment("one", {1: z}), experiment("two", {1: sparse(1)})).latents
    (silent,) = latents[latents["outcome"] == "silent"].itertuples()
    assert (silent.of, silent.latent, silent.match) == ("this", 3, -1) and np.isnan(silent.r)
    nothing = compare.compare(experiment("one", {1: 0 * z}), experiment("two", {1: sparse(1)}))
    assert len(nothing.latents) == 2 * LATENTS and (nothing.latents["outcome"] != "both").all()
    assert "0% of the latents of one have a counterpart in two" in compare_page.sentences(nothing)[0]


@pytest.mark.parametrize(
    ("first", "matched", "told"),
    [
        (IMAGES, 0, "The two experiments share no image. So their latents cannot be matched."),
        (IMAGES - 10, 0, "The two experiments share 10 images. That is too few to match latents: 20 are needed."),
        (IMAGES - 30, 30, "Latents were matched on 30 images that are in both experiments, train images among them."),
        (IMAGES - 60, 30, "Latents were matched on 30 images that are held out in both experiments."),
    ],
)
def test_only_images_of_both_are_compared_and_their_number_is_told(first, matched, told, tmp_path):
    found = compare.compare(experiment("one", {1: sparse(1)}), experiment("two", {1: sparse(1)}, first))
    said, why = compare_page.sentences(found), compare_page.unmatched(found)
    assert told in said and len(found.rows) == matched and bool(len(found.latents)) == bool(matched)
    assert any("images of the two experiments differ, or their classes do" in line for line in said)
    assert (found.table["measure"] == "fvu").sum() == 1  # measures are compared in any case
    figure = figures.compare(found.latents, found.table, ("one", "two"), why)
    style.save(figure, tmp_path / "compare.svg")
    assert (bool(why) and why in (tmp_path / "compare.svg").read_text()) == (not matched)
    assert told in compare_page.page(found, tmp_path / "compare.svg", None)


def test_a_measure_is_better_in_the_experiment_whose_value_is_and_stands_beside_random_dictionaries():
    own, other = experiment("one", {1: sparse(1)}, fvu=0.2), experiment("two", {8: sparse(2)}, blocks=12, fvu=0.4)
    found = compare.compare(own, other)
    (row,) = found.table[found.table["measure"] == "fvu"].itertuples()
    assert (row.layer, row.other_layer, row.value, row.value_other) == (1, 8, 0.2, 0.4)
    assert row.gain == pytest.approx(0.2) and row.low > 0 and row.verdict == "better"  # a low FVU is good
    assert row.random == row.random_other == 0.9
    assert "At the one SAE, one is better by 1 of 1 measures (unexplained variance (FVU))." in compare_page.sentences(
        found
    )


def test_other_classes_of_the_same_images_are_told():
    own, other = experiment("one", {1: sparse(1)}), experiment("two", {1: sparse(1)})

    def told():
        return any("or their classes do" in line for line in compare_page.sentences(compare.compare(own, other)))

    assert not told()
    own.manifest["label"], other.manifest["label"] = "cat", "dog"
    assert told()


def test_the_nearest_depth_and_the_closest_kind_are_compared():
    assert [compare.nearest(layer, 6, [2, 5, 8, 11], 12) for layer in (0, 2, 3, 5)] == [2, 5, 8, 11]
    assert compare.nearest(2, 12, [0, 1], 6) == 0  # as near as the next
    own = [Kind(8, "topk", 0), Kind(8, "relu", 1)]
    others = [Kind(8, "relu", 0), Kind(16, "topk", 0), Kind(64, "topk", 1), Kind(9, "relu", 1)]
    assert compare.closest(own, others) == [(own[0], others[1]), (own[1], others[0])]


def test_the_page_lists_latents_with_links_and_pictures_where_there_is_an_explorer(tmp_path):
    own, other = experiment("<one>", {1: sparse(1)}), experiment("two", {1: sparse(1)})
    found, figure = compare.compare(own, other), tmp_path / "compare.svg"
    figure.write_text("<svg/>")
    text = compare_page.page(found, figure, "../../two/explorer/index.html")
    assert "<one>" not in text and "&lt;one&gt; compared with two" in text
    place = "layer=1&amp;k=4&amp;method=topk&amp;seed=0&amp;latent="
    assert f"../explorer/index.html#{place}" in text and f"../../two/explorer/index.html#{place}" in text
    assert "../explorer/pictures/0.webp" in text and "../../two/explorer/pictures/0.webp" in text
    assert "two/explorer" not in compare_page.page(found, figure, None)


def test_files_of_another_version_are_an_error_of_the_user():
    told = r"with old: its files cannot be read: .*draws.*; run that experiment again"
    with pytest.raises(InputError, match=told), compare.readable("old"):
        raise KeyError("draws")
