"""All evidence about one dictionary, from codes alone."""

import numpy as np
import pandas as pd
import pytest
import small
import timm

import sae
from sae.evidence import judge
from sae.evidence.measures import MEASURES


@pytest.fixture(scope="module", params=[0, 5], ids=["no head", "a head without names"])
def given(request, tmp_path_factory):
    """A layer of 40 images of noise without labels, two SAEs on it."""
    folder = tmp_path_factory.mktemp("store")
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=request.param).eval()
    setup = small.setup(folder, vit.requires_grad_(False), small.noise(folder), 0, "patches", 24, latents=5, images=2)
    config = sae.TrainConfig(k=4, latents=24, batch=30, epochs=3)
    return setup, {seed: small.train(setup, 0, config, seed) for seed in (0, 1)}


def test_evidence_is_gathered_whatever_the_images_and_the_vit_lack(given):
    setup, saes = given
    measured, tables = small.judged(setup, saes, 0, judge.Limits(5, 3, 2))
    assert len(tables["latents"]) == 24 and not tables["latents"]["confirmed"].any() and len(tables["classes"]) == 0
    assert tables["latents"]["stability_cosine"].between(-1, 1).all()
    values = tables["summary"].set_index("measure")["value"]
    assert {"fvu", "stability"} <= set(values.index) <= set(MEASURES)
    assert values["fvu"] == pytest.approx(measured.metrics["fvu"], rel=1e-3)
    assert len(tables["monosemanticity"]) == 24 and len(tables["probes"]) == 0 and len(tables["localisation"]) == 0
    assert (tables["interventions"]["size"] >= 0).all() and len(tables["interventions"]) <= 5
    _measured, again = small.judged(setup, saes, 0, judge.Limits(5, 3, 2))
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, again[name])


def test_a_dictionary_is_found_again_in_its_own_copy(given):
    setup, saes = given
    _measured, tables = small.judged(setup, {0: saes[0], 7: saes[0]}, 0, judge.Limits())
    assert (tables["latents"]["stability_cosine"] > 0.999).all()
    assert tables["latents"]["partner_seeds"].str[0].eq(7).all()


def test_the_table_of_interventions_has_its_columns_though_no_latent_fires(given):
    setup, saes = given
    silent = sae.train(np.random.default_rng(0).standard_normal((60, 192)), sae.TrainConfig(k=1, latents=24, batch=30))
    silent.config = saes[0].config
    silent.b_enc.fill_(-1e6)
    full, none = (small.judged(setup, {0: m, 1: saes[1]}, 0, judge.Limits(5, 3, 2))[1] for m in (saes[0], silent))
    assert len(full["interventions"]) and not len(none["interventions"])
    assert list(none["interventions"]) == list(full["interventions"])
    assert "stability" not in set(none["summary"]["measure"]) and none["summary"]["value"].notna().all()
