"""The explorer's data: the latents and images on the page agree with the SAEs."""

import base64
import json

import numpy as np
import pandas as pd
import pytest
from explorer_site import KS, LATENTS, LAYERS, SEEDS, build
from scipy import stats

from sae import images
from sae.explorer import class_pages, page, parts, point, relatives


@pytest.fixture(scope="module", params=["patches", "class", "all"])
def site(request, tmp_path_factory):
    return build(tmp_path_factory.mktemp("site"), request.param)


def read(site, name):
    text = (site.folder / "data" / f"{name}.js").read_text()
    assert text.isascii() and text.startswith(f"parts.take({json.dumps(name)},") and text.endswith(")\n")
    return json.loads(text.removeprefix(f"parts.take({json.dumps(name)},").removesuffix(")\n"))


def unpack(text, kind):
    return np.frombuffer(base64.b64decode(text), f"<{kind}").astype(int)


def name_of(layer, k, seed):
    return f"layer={layer}/k={k}/method=topk/seed={seed}"


def test_heat_maps_are_the_activations_on_the_patches(site):
    key = (0, 4, 0)
    x, known = site.codes[key], site.tables[key]
    z = x.z.toarray().reshape(len(x.ids), x.tokens, LATENTS)
    patches = 0 if x.tokens == 1 else 16
    about = [a for n in range(2) for a in read(site, f"{name_of(*key)}/latents/{n:04d}")]
    assert len(about) == LATENTS
    checked = 0
    for latent, entry in enumerate(about):
        if known.latents.at[latent, "status"] == "dead":
            assert set(entry) == {"headline", "checks"} and entry["headline"].startswith("Dead")
            continue
        ends = np.cumsum(unpack(entry["counts"], "u2"))
        places, values = (np.split(unpack(entry[n], t), ends)[:-1] for n, t in (("patches", "u2"), ("values", "u1")))
        cells = [cell for panel in ("top", "q75", "q50", "q25") for cell in entry["panels"][panel]]
        assert len(cells) == len(places)
        for (image, activation, patch), here, level in zip(cells, places, values, strict=True):
            truth = z[list(x.ids).index(image), :, latent]
            assert activation == pytest.approx(truth.max(), rel=0.01)
            truth = truth[len(truth) - patches :]
            assert here.tolist() == np.flatnonzero(truth).tolist()
            np.testing.assert_allclose(level / 255 * entry["scale"], truth[here], atol=entry["scale"] / 250)
            assert patch == -1 or patch == truth.argmax()
            checked += len(here)
        for image, activation, _patch in entry["panels"]["silent"]:
            assert activation == 0 and z[list(x.ids).index(image), :, latent].max() == 0
    assert checked or not patches


def test_an_images_latents_are_those_that_fire_on_it(site):
    key = (1, 4, 1)
    listing = read(site, "images")
    opened = [listing["id"][i] for i in listing["opened"]]
    x = site.codes[key].of(opened)
    z = x.z.toarray().reshape(len(opened), x.tokens, LATENTS)
    shown = [entry for n in range(4) for entry in read(site, f"{name_of(*key)}/images/{n:04d}")]
    assert len(shown) == len(opened) == 60
    for entry, truth in zip(shown, z, strict=True):
        latents, counts = unpack(entry["latents"], "u4"), unpack(entry["counts"], "u2")
        tokens, values = unpack(entry["tokens"], "u2"), unpack(entry["values"], "u1")
        rebuilt = np.zeros_like(truth)
        rebuilt[tokens, np.repeat(latents, counts)] = values / 255 * entry["scale"]
        strongest = np.lexsort((np.arange(LATENTS), -truth.max(0)))[: min(point.PER_IMAGE, (truth.max(0) > 0).sum())]
        assert latents[: entry["everywhere"]].tolist() == strongest.tolist()
        np.testing.assert_allclose(entry["strongest"], truth.max(0)[strongest], rtol=0.01)
        # k = 4 is below what is kept of a token, so that nothing is left out.
        np.testing.assert_allclose(rebuilt, truth, atol=entry["scale"] / 250)


def test_a_classs_images_are_flagged_or_missed_by_its_best_latent(site):
    key, listing = (0, 4, 0), read(site, "images")
    menu, known = read(site, "grid")["classes"], site.tables[key]
    names = listing["attributes"]["label"]["names"]
    label = dict(zip(listing["id"], listing["attributes"]["label"]["codes"], strict=True))
    held_out = dict(zip(listing["id"], unpack(listing["held_out"], "u1"), strict=True))
    opened = {listing["id"][i] for i in listing["opened"]}
    images_of = site.codes[key].images.toarray()
    strongest = dict(zip(site.codes[key].image_ids, images_of, strict=True))
    entries = read(site, f"{name_of(*key)}/classes/0000")
    assert [row[1] for row in menu] == names and len(entries) == len(menu) == 3
    for number, (entry, (_attribute, name, count, held)) in enumerate(zip(entries, menu, strict=True)):
        assert count == 24 and 0 < held < count
        if held < 4:  # too few to be tested
            assert entry["best"] is None and entry["latents"] == []
            continue
        best = known.best_latents.set_index("class").loc[name]
        latent, f1, f1_train, flagged, missed = entry["best"]
        assert latent == best["latent"] and f1 == pytest.approx(best["f1_held_out"], rel=0.01)
        assert f1_train == pytest.approx(best["f1"], rel=0.01)
        here = [i for i in sorted(opened) if label[i] == number and held_out[i]]
        assert sorted(flagged + missed) == here if len(here) <= 8 else set(flagged + missed) <= {*here}
        for ids, above in ((flagged, True), (missed, False)):
            assert all((strongest[i][latent] >= np.float32(best["threshold"])) == above for i in ids)
        of_class = known.classes[known.classes["name"] == name].set_index("latent")
        for latent, mcc, confirmed, _precision, _recall, also in entry["latents"]:
            row = of_class.loc[latent]
            assert mcc == pytest.approx(row["mcc_held_out"], rel=0.01, abs=1e-3) and confirmed == row["confirmed"]
            assert name not in also and len(also) <= 2


def test_effects_on_a_class_are_those_on_the_heads_class_of_that_name(site):
    key = (0, 4, 0)
    row = {"attribute": "label", "class": "pets/n02084071", "name": "dog", "images": 9, "held_out": 3}
    known = pd.DataFrame([row])
    rows = [(i, "label", "n02084071", effect, 0.1, 2, 3) for i, effect in ((7, 0.2), (3, 0.5), (5, -0.4))]
    rows.append((8, "label", "n01440764", 0.9, 0.1, 2, 3))
    moved = pd.DataFrame(rows, columns=["latent", "attribute", "class", "effect", "control", "active", "images"])
    tables = site.tables[key]
    nothing = [table.iloc[:0] for table in (tables.classes, tables.best_latents)]
    ids = site.codes[key].image_ids
    manifest = pd.DataFrame({"id": ids, "split": "held_out", "label": "pets/n02084071"})
    [entry] = class_pages.entries(known, *nothing, moved, pd.DataFrame(), site.codes[key], manifest, ids)
    assert [row[:2] for row in entry["effects"]] == [[3, 0.5], [7, 0.2]] and entry["best"] is None


def test_classes_too_small_to_be_tested_have_no_latents(site):
    key = (0, 4, 0)
    tables, ids = site.tables[key], site.codes[key].image_ids
    classes = tables.classes.assign(q=np.nan, mcc_held_out=np.nan, confirmed=False)
    known = pd.DataFrame([{"attribute": "label", "class": "dog", "name": "dog", "images": 9, "held_out": 3}])
    manifest = pd.DataFrame({"id": ids, "split": "held_out", "label": "dog"})
    nothing = tables.best_latents.iloc[:0], tables.attributions.iloc[:0], pd.DataFrame()
    [entry] = class_pages.entries(known, classes.assign(**{"class": "dog"}), *nothing, site.codes[key], manifest, ids)
    assert entry["latents"] == []


def test_an_images_predictions_are_explained_by_its_listed_latents(site):
    key, listing = (0, 4, 0), read(site, "images")
    opened = [listing["id"][i] for i in listing["opened"]]
    entries = [entry for n in range(4) for entry in read(site, f"{name_of(*key)}/images/{n:04d}")]
    explained = [entry for entry in entries if "effects" in entry]
    assert 0 < len(explained) < len(entries) == len(opened)
    for entry in explained:
        assert len(entry["effects"]) == entry["everywhere"] and entry["predicted"][0] in "012"
        assert all(group == 0 and np.isfinite(value) for group, value in entry["effects"])
    assert any(value for entry in explained for _group, value in entry["effects"])


def test_only_the_strongest_of_a_token_are_kept(monkeypatch, site):
    monkeypatch.setattr(point, "PER_PATCH", 1)
    monkeypatch.setattr(point, "PER_IMAGE", 1)
    encoded = site.codes[0, 4, 0]
    z = encoded.z.toarray().reshape(len(encoded.ids), encoded.tokens, LATENTS)
    found = point._on_images(encoded, np.ones(len(encoded.ids), bool))
    for image, truth in zip(encoded.ids, z, strict=True):
        entry = found[int(image)]
        latents = np.repeat(unpack(entry["latents"], "u4"), unpack(entry["counts"], "u2"))
        kept = set(zip(unpack(entry["tokens"], "u2").tolist(), latents.tolist(), strict=True))
        first = truth.max(0).argmax()
        wanted = {(t, int(row.argmax())) for t, row in enumerate(truth) if row.max() > 0}
        assert kept == wanted | {(int(t), int(first)) for t in np.flatnonzero(truth[:, first])}


def test_the_table_says_what_the_tables_say(site):
    for layer in LAYERS:
        table, known = read(site, f"{name_of(layer, 2, 0)}/table"), site.tables[layer, 2, 0]
        latents = known.latents
        assert unpack(table["alive"], "u1").tolist() == (latents["status"] == "alive").astype(int).tolist()
        for column, key in {"stability_correlation": "stability", "frequency_held_out": "density"}.items():
            np.testing.assert_allclose(np.array(table[key], float), latents[column], rtol=0.01)
        named = [None if c < 0 else table["names"][c] for c in table["class"]]
        assert [n is not None for n in named] == latents["confirmed"].tolist()
        assert [n for n in named if n] == latents.loc[latents["confirmed"], "top_name"].tolist()
        ratio = latents["estimated_effect"] / latents["estimated_control"]
        # After the last block, patches have no effect.
        assert ratio.notna().any() == (layer == 0 or read(site, "grid")["tokens"] != "patches")
        np.testing.assert_allclose(np.array(table["effect"], float), ratio, rtol=0.01)


def test_relatives_are_those_of_the_tables(site):
    about = [a for n in range(2) for a in read(site, f"{name_of(0, 2, 0)}/latents/{n:04d}")]
    known = site.tables[0, 2, 0]
    across = known.across_ks.set_index("latent")
    layers = known.across_layers[known.across_layers["layer"] == 0].set_index("latent")
    for latent, entry in enumerate(about):
        for relative in entry.get("relatives", []):
            [(key, value)] = relative["to"].items()
            if key == "seed":
                assert value == 1 and relative["known"]
                assert relative["latent"] == known.latents["partners_by_correlation"][latent][0]
            elif key == "k":
                assert value == 4
                lost = across.at[latent, "outcome"] == "lost"
                assert (relative["latent"] is None) == lost
                assert lost or relative["latent"] in {across.at[latent, "best"], *across.at[latent, "child_latents"]}
            else:
                assert value == 1
                assert relative["latent"] in (None, layers.at[latent, "next"])
        if entry.get("relatives") and across.at[latent, "outcome"] != "dead":  # it fires on held-out images
            assert {"k", "layer", "seed"} == {next(iter(r["to"])) for r in entry["relatives"]}


def test_edges_lead_to_the_layer_before_and_after(site):
    table = site.tables[0, 2, 0].edges
    a, b = table["latent"].tolist(), table["target"].tolist()
    early, late = (
        [each for n in range(2) for each in read(site, f"{name_of(layer, 2, 0)}/latents/{n:04d}")] for layer in (0, 1)
    )
    into, out = {"layer": 0, "into": True}, {"layer": 1, "into": False}
    for entries, latent, where, edges in (
        (late, b[0], into, [[a[0], 0.5, 0.05, 0.45], [a[1], -0.2, 0.05, -0.1]]),
        (late, b[2], into, [[a[2], 0.4, 0.05, None]]),
        (late, b[3], into, [[a[3], 0.1, 0.05, 0.2]]),
        (early, a[0], out, [[b[0], 0.5, 0.05, 0.45], [b[3], 0.1, 0.05, 0.2]]),
        (early, a[1], out, [[b[2], 0.4, 0.05, None], [b[0], -0.2, 0.05, -0.1]]),
    ):
        assert entries[latent]["edges"] == [where | {"agreement": [1, 1], "edges": edges}]
    assert all(entry.get("edges", []) == [] for i, entry in enumerate(early) if i not in a)


def test_nearest_are_the_most_similar_decoder_rows(site):
    decoder = np.random.default_rng(0).standard_normal((LATENTS, 8))
    alive = (site.tables[0, 2, 0].latents["status"] == "alive").to_numpy()
    cosine = decoder @ decoder.T / np.outer(*[np.linalg.norm(decoder, axis=1)] * 2)
    cosine[:, ~alive] = -2
    np.fill_diagonal(cosine, -2)
    for latent, found in enumerate(relatives.nearest(decoder, alive)):
        assert found[0][0] == cosine[latent].argmax() and latent not in [other for other, _ in found]
        assert [c for _, c in found] == pytest.approx(sorted((c for _, c in found), reverse=True))
        assert found[0][1] == pytest.approx(cosine[latent].max(), abs=0.01)


def test_the_grid_holds_every_point_and_measure(site):
    grid = read(site, "grid")
    assert len(grid["points"]) == 2 * len(LAYERS) * len(KS) * len(SEEDS)
    assert [p["method"] for p in grid["points"]] == ["topk"] * 8 + ["pca"] * 8
    first = grid["points"][0]
    row = site.metrics[(site.metrics["method"] == "topk")].iloc[0]
    assert first["values"]["fvu"] == pytest.approx(row["fvu"], rel=0.01)
    low, high = first["intervals"]["stability"]
    assert low <= first["values"]["stability"] <= high
    assert grid["answer"].startswith("The SAE gains nothing") and "the 8 grid points" in grid["answer"]


def test_numbers_that_do_not_fit_are_refused():
    assert unpack(parts.pack([0, 65535], "u2"), "u2").tolist() == [0, 65535]
    for values in ([65536], [-1]):
        with pytest.raises(ValueError, match="do not fit"):
            parts.pack(values, "u2")
    assert parts.numbers([0.123456, np.nan, np.inf, 2.0, -0.5]) == [0.123, None, None, 2, -0.5]


def test_nan_never_reaches_the_page(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        parts.write(tmp_path, "x", [float("nan")])


def test_what_fires_faintly_still_shows():
    assert point._levels(np.array([1e-6, 0.5, 1.0]), 1.0).tolist() == [1, 128, 255]


def test_intervals_are_exact():
    low, high = point.interval([0, 3, 10, 0], [10, 10, 10, 0])
    for place, hits in enumerate((0, 3, 10)):
        truth = stats.binomtest(hits, 10).proportion_ci(method="exact")
        assert (low[place], high[place]) == pytest.approx((truth.low, truth.high))
    assert np.isnan(low[3]) and np.isnan(high[3])


def test_images_keep_the_attributes_that_all_images_make():
    n = 40
    rows = {"id": range(n), "path": [f"{i}.png" for i in range(n)], "split": ["train", "held_out"] * 20, "status": "ok"}
    manifest = pd.DataFrame(rows | {"label": "cat", "artist": [f"a{i // 2}" for i in range(n)]})
    known = page.image_list(manifest, [0, 4], [4, 9])  # of the artists of these three images none is there twice
    artist = known["attributes"]["artist"]
    assert known["id"] == [0, 4, 9] and known["opened"] == [0, 1]
    assert [artist["names"][code] for code in artist["codes"]] == ["a0", "a2", "a4"]


def test_of_many_classes_those_that_an_effect_moves_most_are_shown():
    moved = np.array([0.1, -5.0, 2.0, 0.0, 0.2, -0.3, 0.4, -0.5, 0.6, 0.7, 3.0])
    names = [f"class {i}" for i in range(len(moved))]
    rows = {"latent": 7, "kind": "ablate", "attribute": "label", "class": names, "effect": moved, "se": 0.1}
    intervention = pd.Series(
        {"measure": "kl", "images": 4, "size": 1.0, "size_control": 0.5, "size_steered": 0.2, "p": 0.03}
    )
    effects = pd.concat([pd.DataFrame(rows), pd.DataFrame(rows | {"kind": "steer"}).head(2)])
    shown = point._effect(intervention, effects)["effects"]
    assert [row[3] for row in shown if row[0] == "ablate"] == [3.0, 2.0, 0.7, 0.6, 0.4, -0.3, -0.5, -5.0]
    assert [row[2:4] for row in shown if row[0] == "steer"] == [["class 0", 0.1], ["class 1", -5.0]]
    assert point._effect(intervention, effects.iloc[:0])["effects"] == []


def test_classes_of_one_name_stay_apart():
    classes = ["n02012849", "n03126707", "cat", "n02012849"]
    rows = pd.DataFrame({"attribute": ["label"] * 3 + ["sort"], "class": classes})
    crane = images.describe("n02012849")
    assert images.describe("n03126707") == crane != "n02012849"  # ImageNet's bird and ImageNet's machine
    assert point._names(rows) == [f"{crane} (n02012849)", f"{crane} (n03126707)", "cat", crane]
