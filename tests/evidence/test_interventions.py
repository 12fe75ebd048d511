"""Ablating and steering latents in the ViT: planted causes, and what must hold whatever the SAE has learned."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import small
import torch
from causes import IMAGES, clean, planted, real

from sae import InputError
from sae import vit as vits
from sae.autoencoder import SparseAutoencoder
from sae.evidence import interventions
from sae.evidence.interventions import Responses
from sae.figures import interventions as figures


def measure(vit, sae, x, codes, latents, classes=None, images=8, top=5):
    """Returns the tables of the responses."""
    responses = interventions.run(vit, sae, x, codes, latents, clean(vit, sae, x), images)
    unknown = pd.DataFrame(columns=["latent", "attribute", "class"])
    return interventions.tables(responses, vits.class_names(vit), unknown if classes is None else classes, top)


@pytest.fixture(scope="module")
def case():
    return real()


@pytest.fixture(scope="module")
def found(case):
    return measure(*case[:4], range(24), top=1000)


@pytest.fixture(scope="module")
def cause():
    return planted()


@pytest.fixture(scope="module")
def caused(cause):
    *inputs, classes = cause
    return measure(*inputs, range(37), classes)


def streams(monkeypatch, case, latent, images):
    """Returns the responses of one latent, and the streams that led to them less the stored tokens, by change."""
    model, sae, x, codes, _ = case
    seen, resume, outputs = [], vits.resume, clean(model, sae, x)
    with monkeypatch.context() as patch:
        patch.setattr(vits, "resume", lambda m, tokens, layer: seen.append(tokens.clone()) or resume(m, tokens, layer))
        responses = interventions.run(model, sae, x, codes, [latent], outputs, images)
    stored = x.read(responses.image).astype(np.float32)
    return responses, torch.cat(seen).numpy() - stored


def of_kind(responses, kind):
    """Returns the places of the changes of one kind."""
    return np.flatnonzero(responses.kind == interventions.KINDS.index(kind))


def test_a_planted_cause_is_found_and_the_control_is_at_chance(cause, caused):
    classes, (table, effects) = cause[-1], caused
    assert (table["causal_class"] == classes["class"]).all()
    assert (table["causal_attribute"] == classes["attribute"]).all()
    assert (table["correlated_class"] == classes["class"]).all()
    assert (table["agreement"] == 1).all() and (table["rank"] == 0).all() and table["sign_agrees"].all()
    assert (table["agreement_steered"] == 1).all()
    assert table["agreement_control"].mean() == pytest.approx(0.5, abs=0.15)
    assert 0.2 < table["sign_agrees_control"].mean() < 0.8
    assert (table["causal_effect"] == table["correlated_effect"]).all()
    first = effects.groupby(["latent", "kind"]).apply(lambda t: t.loc[t["effect"].idxmax(), "class"])
    assert (first.xs("steer", level="kind") == classes["class"]).all()
    control = first.xs("control", level="kind")
    assert (control == classes["class"]).mean() < 0.2


def test_classes_shuffled_among_the_latents_agree_by_chance(cause):
    *inputs, classes = cause
    means = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(37)
        shuffled = classes.assign(latent=classes["latent"].to_numpy()[order])
        means.append(measure(*inputs, range(37), shuffled)[0]["agreement"].mean())
    assert np.mean(means) == pytest.approx(0.5, abs=0.1)


def test_the_effect_is_that_of_an_edited_forward_pass(case):
    model, sae, x, codes, images = case
    latent = int(codes.images.sum(0).argmax())
    table, effects = measure(model, sae, x, codes, [latent], images=1, top=1000)
    place = int(codes.images[:, [latent]].toarray().argmax())
    clean = torch.from_numpy(x.read(np.array([place]))).float()
    z = codes.z[place * codes.tokens : (place + 1) * codes.tokens].toarray()[:, latent]
    assert (z > 0).any()
    prefix = len(vits.geometry(model).prefix)

    def ablate(tokens):
        changed = tokens.clone()
        for t, value in enumerate(z):
            changed[0, prefix + t] -= value * sae.W_dec[latent] / 0.5
        return changed

    outputs = []
    for change in (lambda tokens: tokens, ablate):
        with torch.inference_mode(), vits.edit(model, 2, lambda _, change=change: change(clean)):
            outputs.append(model(images[place][None]).double())
    log_p, log_q = (o.log_softmax(1) for o in outputs)
    expected = (log_p - log_q)[0].numpy()
    expected -= expected.mean()
    rows = effects[effects["kind"] == "ablate"].set_index("class")["effect"]
    np.testing.assert_allclose(rows[vits.class_names(model)["label"]], expected, atol=2e-5)
    assert abs(expected).max() > 1e-2
    divergence = float((log_p.exp() * (log_p - log_q)).sum())
    assert table["size"].item() == pytest.approx(divergence, rel=1e-2)
    assert table["causal_class"].item() == vits.class_names(model)["label"][expected.argmax()]


def test_the_control_is_as_long_as_the_ablation_token_by_token(monkeypatch, case):
    latent = int(case[3].images.sum(0).argmax())
    responses, delta = streams(monkeypatch, case, latent, images=3)
    ablate, control = of_kind(responses, "ablate"), of_kind(responses, "control")
    assert len(ablate) == len(control) == 3 and (responses.latent == latent).all()
    assert (responses.image[ablate] == responses.image[control]).all()
    fires = case[3].z[:, [latent]].toarray().reshape(IMAGES, -1) > 0
    for a, c in zip(ablate, control, strict=True):
        lengths = np.linalg.norm(delta[a], axis=1)
        assert ((lengths > 0)[1:] == fires[responses.image[a]]).all() and lengths[0] == 0
        np.testing.assert_allclose(np.linalg.norm(delta[c], axis=1), lengths, rtol=1e-4, atol=1e-5)
        firing = delta[a][lengths > 0], delta[c][lengths > 0]
        assert (abs(np.einsum("td,td->t", *firing)) < 0.5 * lengths[lengths > 0] ** 2).all()


def test_steering_puts_the_latents_own_activations_where_it_is_silent(monkeypatch, case):
    codes = case[3]
    fired = np.bincount(codes.images.indices, minlength=24)
    latent = int(np.flatnonzero((fired > 0) & (fired <= 8))[0])
    responses, delta = streams(monkeypatch, case, latent, images=2)
    ablate, steer = of_kind(responses, "ablate"), of_kind(responses, "steer")
    assert len(steer)
    for a, s in zip(ablate, steer, strict=True):
        assert codes.images[[responses.image[s]], :].toarray()[0, latent] == 0
        np.testing.assert_allclose(delta[s], -delta[a], atol=1e-5)


def test_a_latent_without_a_decoder_direction_changes_nothing(cause):
    model, sae, x, codes, classes = cause
    directions = sae.W_dec.clone()
    sae.W_dec[5] = 0
    try:
        result = measure(model, sae, x, codes, [5, 6], classes)
    finally:
        sae.W_dec[:] = directions
    row, other = (result[0].set_index("latent").loc[i] for i in (5, 6))
    assert row["size"] == row["size_control"] == row["size_steered"] == 0
    assert np.isnan(row["agreement"]) and pd.isna(row["sign_agrees"]) and pd.isna(row["causal_class"])
    assert np.isnan(row["p"]) and np.isnan(row["ratio"])
    assert (result[1].loc[result[1]["latent"] == 5, "effect"] == 0).all()
    assert other["size"] > 0


def test_rows_follow_the_latents_asked_for(cause, caused):
    *inputs, classes = cause
    some = measure(*inputs, [20, 3, 11], classes)[0]
    assert some["latent"].tolist() == [20, 3, 11]
    expected = caused[0].set_index("latent").loc[[20, 3, 11]].reset_index()
    pd.testing.assert_frame_equal(some, expected, rtol=1e-3, atol=1e-5)  # other batches, other rounding


def test_renumbering_the_latents_renumbers_the_ablations(cause, caused):
    model, sae, x, codes, classes = cause
    order = np.random.default_rng(1).permutation(37)  # new latent i was order[i]
    renamed = SparseAutoencoder(sae.config, scale=2.0).requires_grad_(False)
    renamed.W_dec[:] = sae.W_dec[order]
    moved = small.coded(codes.z.toarray()[:, None, order], codes.ids)
    table = classes.assign(latent=np.argsort(order))
    found = measure(model, renamed, x, moved, range(37), table)[0]
    columns = ["images", "size", "causal_class", "causal_effect", "agreement", "correlated_class"]
    before = caused[0].set_index("latent").loc[order, columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[columns], before, rtol=1e-3, atol=1e-5)


def test_sizes_and_effects_keep_their_rules(found, case):
    table, effects = found
    for column in ("size", "size_control", "size_steered"):
        assert (table[column].dropna() >= 0).all()
    assert (table["size"] > 0).any()
    total = effects.groupby(["latent", "kind"])["effect"].sum()
    np.testing.assert_allclose(total, 0, atol=1e-6)  # against the group's mean
    images = np.bincount(case[3].images.indices, minlength=24)[table["latent"]]
    assert (table["images"] == images.clip(max=8)).all()
    steered = effects[effects["kind"] == "steer"].groupby("latent")["images"].first()
    assert (steered == np.minimum(table.set_index("latent")["images"], IMAGES - images)[steered.index]).all()
    assert table["correlated_class"].isna().all() and table["agreement"].isna().all()


def test_only_the_classes_that_move_most_are_kept(case, found):
    few = measure(*case[:4], range(24), top=2)[1]
    assert (few.groupby(["latent", "kind", "attribute"]).size() == 2).all()
    largest = found[1].assign(size=found[1]["effect"].abs()).groupby(["latent", "kind"])["size"].max()
    kept = few.assign(size=few["effect"].abs()).groupby(["latent", "kind"])["size"].max()
    np.testing.assert_allclose(kept, largest, rtol=1e-6)


def test_silent_latents_have_no_row(cause):
    model, sae, x, codes, classes = cause
    z = codes.z.toarray()
    z[:, [4, 7]] = 0
    silenced = small.coded(z[:, None], codes.ids)
    result = measure(model, sae, x, silenced, [3, 4, 7, 8], classes)
    assert result[0]["latent"].tolist() == [3, 8]
    nothing = measure(model, sae, x, silenced, [4, 7], classes)
    assert all(table.empty for table in nothing)
    figures.interventions(*nothing, "nothing")


def test_a_latent_alone_has_no_control_and_one_that_always_fires_is_not_steered(cause):
    model, sae, x, _, classes = cause
    z = np.zeros((40, 37), np.float32)
    z[:, 9] = 1
    row = measure(model, sae, x, small.coded(z[:, None], x.ids), [9], classes)[0].iloc[0]
    assert row["agreement"] == 1 and row["size"] > 0
    assert row[["size_control", "size_steered", "p", "ratio", "agreement_control", "agreement_steered"]].isna().all()


def test_patches_behind_the_last_block_move_nothing():
    model, sae, x, codes, _ = real(layer=11)
    classes = pd.DataFrame({"latent": range(24), "attribute": "label", "class": "n02123045"})
    result = measure(model, sae, x, codes, range(24), classes)
    assert (result[0]["size"] == 0).all() and result[0]["agreement"].isna().all()
    assert (result[0]["correlated_class"] == "n02123045").all()
    figures.interventions(*result, "nothing moves")


def test_a_model_without_a_head_is_measured_by_cosine():
    model, sae, x, codes, _ = real("vit_small_patch14_reg4_dinov2", 42)
    result = measure(model, sae, x, codes, range(8), images=4)
    assert (result[0]["measure"] == "cosine distance").all()
    assert result[0]["size"].between(0, 2).all() and (result[0]["size"] > 0).any()
    assert result[1].empty and result[0]["causal_class"].isna().all()
    figures.interventions(*result, "no head")


def test_outputs_without_names_are_numbered():
    model, sae, x, codes, _ = real(num_classes=5)
    assert vits.class_names(model) == {}
    classes = pd.DataFrame({"latent": range(24), "attribute": "label", "class": "cat"})
    result = measure(model, sae, x, codes, range(8), classes, images=4)
    assert (result[1]["attribute"] == "output").all() and set(result[1]["class"]) == set("01234")
    assert (result[0]["measure"] == "kl").all() and result[0]["agreement"].isna().all()


def test_the_first_class_that_the_head_knows_counts():
    names = {"label": ["n01", "n02"], "colour": ["blue", "red"]}
    classes = pd.DataFrame(
        [
            (0, "label", "blue ring"),
            (0, "colour", "red"),
            (0, "label", "n01"),
            (1, "label", "pets/n02"),
            (2, "size", "s"),
        ],
        columns=["latent", "attribute", "class"],
    )
    n = np.arange(3)
    responses = Responses(n, 0 * n, n, np.ones(3), np.arange(12.0).reshape(3, 4))
    table, _effects = interventions.tables(responses, names, classes)
    assert table["correlated_class"].tolist()[:2] == ["red", "n02"] and pd.isna(table["correlated_class"][2])
    assert table["correlated_effect"].tolist()[:2] == [3, 5]
    assert interventions.tables(responses, names, classes[:0])[0]["correlated_class"].isna().all()


def test_latents_are_chosen_blindly_among_those_that_fire_often_enough(cause):
    z = np.zeros((10, 30), np.float32)
    for latent in range(30):
        z[: latent % 6, latent] = 1
    codes = small.coded(z[:, None])
    often = [i for i in range(30) if i % 6 >= 4]
    assert interventions.choose(codes, 99) == often
    drawn = [interventions.choose(codes, 4, seed) for seed in range(60)]
    assert all(len(set(d)) == 4 and set(d) <= set(often) for d in drawn)
    assert set(np.concatenate(drawn)) == set(often)
    assert interventions.choose(codes, 4, 1) == interventions.choose(codes, 4, 1)
    assert interventions.choose(codes, 3, at_least=11) == []


def test_codes_of_other_images_are_refused(cause):
    model, sae, x, codes, _ = cause
    with pytest.raises(InputError, match="same images"):
        measure(model, sae, x, replace(codes, ids=codes.ids + 1), [0])


def test_rounding_is_no_effect():
    clean = np.random.default_rng(0).normal(size=(3, 6)) * 20
    changed = clean.copy()
    changed[0, 2] += 1e-5
    changed[1, 2] -= 1e-2
    size, effects = interventions.respond(clean, changed, [2, 4])
    assert (size > 0).tolist() == [False, True, False]
    assert not effects[[0, 2]].any() and not effects[:, :2].any()
    np.testing.assert_allclose(effects[1, 2:], [7.5e-3, -2.5e-3, -2.5e-3, -2.5e-3], rtol=1e-6)
