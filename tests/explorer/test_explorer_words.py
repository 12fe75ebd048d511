"""The explorer's sentences claim no more than the tables hold, and the page gets its words and scales from Python."""

import json

import numpy as np
import pandas as pd
import pytest

from sae.evidence.measures import DENSE, FOUND, MEASURES, Measure
from sae.explorer import page, relatives, words


def latent(**facts):
    usual = {"status": "alive", "token_type": "", "stability_correlation": 0.8, "partner_seeds": [1]}
    usual |= {"estimated_effect": np.nan, "estimated_control": np.nan, "factor_pairs": None}
    return usual | facts


def best(**facts):
    usual = {"attribute": "label", "name": "cat", "confirmed": True, "right_held_out": 9, "flagged_held_out": 10}
    usual |= {"support_held_out": 12, "images_held_out": 100, "precision_held_out": 0.9, "q": 0.001}
    return pd.Series(usual | facts)


SIMILAR = pd.Series({"monosemanticity": 0.5, "monosemanticity_chance": 0.0, "monosemanticity_deviation": 0.1})
MOVES = pd.Series({"ratio": 2.0, "size": 0.2, "size_control": 0.1, "images": 4})


def test_the_headline_says_no_more_than_is_known():
    assert words.headline(latent(), best()) == (
        "Responds to “cat”: it flags 9 of the 12 held-out images of this class, and 10 held-out images in all."
    )
    assert words.headline(latent(status="dead"), None).startswith("Dead")
    for token_type in ("prefix", "artefact", "position", "border"):
        assert words.headline(latent(token_type=token_type), best()).startswith("Probably not a visual feature")
    assert "No class could be tested" in words.headline(latent(), None)
    refused = words.headline(latent(), best(confirmed=False))
    assert "No class is confirmed" in refused and "Responds" not in refused
    other = words.headline(latent(), best(confirmed=False), best(attribute="colour", name="red"))
    assert "“cat”, is not confirmed" in other and "colour “red” is" in other


def test_checks_for_and_against():
    def verdicts(*given):
        return [verdict for verdict, _text in words.checks(*given)]

    assert verdicts(latent(), best(), SIMILAR, MOVES) == ["yes"] * 4
    verdict, text = words.checks(latent(token_type="border"), best(), SIMILAR, MOVES)[0]
    assert verdict == "open" and "90% of the 10 held-out images" in text and "follows the border" in text
    weak = SIMILAR.copy()
    weak["monosemanticity"] = 0.1
    against = MOVES.copy()
    against[["size", "ratio"]] = 0.05, 0.5
    assert verdicts(latent(stability_correlation=0.2), best(confirmed=False), weak, against) == ["no"] * 4
    still = MOVES.copy()
    still["ratio"] = np.nan
    assert verdicts(latent(stability_correlation=np.nan), None, SIMILAR * np.nan, None) == ["open"] * 4
    assert verdicts(latent(), best(), SIMILAR, still)[3] == "open"
    assert words.checks(latent(status="dead"), None, SIMILAR, None) == []
    given = (("colour", 0.6, 9), ("colour", 0.6, 2), ("colour", 0.3, 9), (None, np.nan, 0))
    facts = [dict(zip(("factor", "factor_share", "factor_pairs"), values, strict=True)) for values in given]
    one = [words.checks(latent(**each), best(), SIMILAR, MOVES)[4] for each in facts]
    assert [verdict for verdict, _text in one] == ["yes", "open", "open", "open"]
    assert "60% are by colour" in one[0][1] and "within too few pairs" in one[3][1]
    assert "2 other seeds" in words.checks(latent(partner_seeds=[1, 2]), best(), SIMILAR, None)[1][1]
    alone = words.checks(latent(partner_seeds=[], stability_correlation=np.nan), best(), SIMILAR, None)[1]
    assert alone == ("open", "Its reproducibility is unknown: this SAE was imported, without another seed of it.")
    assert verdicts(latent(stability_correlation=FOUND), best(), SIMILAR, None)[1] == "yes"


def test_an_estimate_stands_in_for_a_measurement_and_says_so():
    def said(effect, control, measured=None):
        return words.checks(latent(estimated_effect=effect, estimated_control=control), best(), SIMILAR, measured)[3]

    assert said(0.3, 0.1)[0] == "yes" and said(0.1, 0.3)[0] == "no"
    assert said(0.3, 0.1)[1].startswith("Estimated") and " 3 times as much" in said(0.3, 0.1)[1]
    assert said(0.0, 0.0)[0] == "open" and said(np.nan, np.nan)[0] == "open"
    assert said(0.1, 0.3, MOVES)[0] == "yes" and said(0.1, 0.3, MOVES)[1].startswith("Measured")


def test_a_class_for_which_no_held_out_image_is_flagged():
    nothing = best(confirmed=False, right_held_out=0, flagged_held_out=0, precision_held_out=0.0)
    verdict, text = words.checks(latent(), nothing, SIMILAR, None)[0]
    assert verdict == "no" and text.startswith("It flags no held-out image") and "cat" in text


def test_the_page_gets_measures_thresholds_and_colours_from_python(monkeypatch):
    monkeypatch.setitem(MEASURES, "novelty", Measure("novelty", "novelty", "How new a latent is."))
    rows = [(layer, k, "topk", 0, 0.5) for layer in (9, 3, 6) for k in (32, 16)]
    metrics = pd.DataFrame(rows, columns=["layer", "k", "method", "seed", "novelty"])
    grid = json.loads(json.dumps(page.grid(metrics, pd.DataFrame(), ["topk"], [], {"name": "x"})))
    assert grid["measures"][-1]["key"] == "novelty" and grid["points"][0]["values"] == {"novelty": 0.5}
    assert [measure["key"] for measure in grid["measures"]] == list(MEASURES)
    assert {kind["name"]: kind["above"] for kind in grid["filters"]}["dense"] == DENSE
    assert {kind["column"] for kind in grid["filters"]} <= {column["key"] for column in grid["columns"]} | {"alive"}
    assert [grid["scales"][kind]["values"] for kind in ("layer", "k")] == [[3, 6, 9], [16, 32]]
    for theme in ("light", "dark"):
        assert len(set(grid["scales"]["layer"][theme])) == 3
    assert grid["edges"] == pytest.approx(2.0 ** np.arange(-6, 6.01, 0.5))
    texts = [part["sentence"] for name in ("measures", "columns", "filters", "on") for part in grid[name]]
    assert all(text.endswith(".") for text in texts)


def test_relatives_are_told_from_both_sides():
    latents = pd.DataFrame({"latent": [0, 1, 2], "partner_seeds": [[], [], []]})
    latents = latents.assign(
        partners_by_correlation=latents["partner_seeds"], partner_correlations=latents["partner_seeds"]
    )
    columns = ["k", "next_k", "latent", "outcome", "best", "r_best", "child_latents"]
    rows = [
        (4, 8, 0, "split", 2, 0.8, [2, 5, 6, 7, 8]),
        (4, 8, 1, "lost", 3, 0.1, []),
        (4, 8, 2, "dead", -1, np.nan, []),
        (2, 4, 7, "merged", 0, 0.6, []),
        (2, 4, 8, "same", 1, 0.2, []),  # below the correlation from which it is related
    ]
    across_ks = pd.DataFrame(rows, columns=columns)
    found = relatives.relatives(latents, across_ks, pd.DataFrame(), {"k": 4, "layer": 1}, [0])
    split = [(r["latent"], r["r"]) for r in found[0] if r["to"] == {"k": 8}]
    assert split == [(2, 0.8), (5, None), (6, None), (7, None)]
    assert [(r["latent"], r["note"]) for r in found[0] if r["to"] == {"k": 2}] == [
        (7, "merges into this one with others")
    ]
    assert [(r["latent"], r["r"]) for r in found[1]] == [(None, 0.1), (None, None)]
    assert [r["to"] for r in found[2]] == [{"k": 2}]
