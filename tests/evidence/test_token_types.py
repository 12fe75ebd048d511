"""On which tokens latents fire, and whether on the object: planted places, and chance."""

import numpy as np
import pandas as pd
import pytest
import small

from sae.evidence import token_types
from sae.latent_codes import Tally

KINDS, PATCHES = ["class", *["patch"] * 48], (6, 8)
N, TOKENS = 60, 49


@pytest.fixture
def planted():
    """Latents: 0 class token, 1 top row, 2 one patch, 3 border, 4 high norms, 5 anywhere, 6 dead, 7 rare."""
    rng = np.random.default_rng(0)
    z = np.zeros((N, TOKENS, 8))
    patches = z[:, 1:].reshape(N, 6, 8, 8)  # a view
    norms = np.ones((N, TOKENS))
    high = rng.random((N, TOKENS)) < 0.03
    high[:, 0] = False
    norms[high] = 9
    z[:, 0, 0] = 1
    patches[:, 0, :, 1] = rng.random((N, 8)) < 0.7
    patches[:, 3, 4, 2] = 2
    border = np.ones((6, 8), bool)
    border[1:-1, 1:-1] = False
    patches[..., 3] = border & (rng.random((N, 6, 8)) < 0.4)
    z[..., 4] = high
    z[:, 1:, 5] = rng.random((N, 48)) < 0.2
    z[3, 17, 7] = z[20, 40, 7] = 1
    return z, norms


def table_of(z, norms):
    fires, high = z > 0, norms > 4
    tally = Tally.empty(z.shape[2], TOKENS)
    tally.rows[:] = 0, norms.size
    tally.by_token[:], tally.high[:] = fires.sum(0).T, (fires & high[..., None]).sum((0, 1))
    tally.high_rows[:] = high.sum()
    return token_types.table(tally, KINDS, PATCHES)


def test_token_types_of_planted_latents(planted):
    table = table_of(*planted)
    assert table["token_type"].tolist() == ["prefix", "position", "position", "border", "artefact", "", "", ""]
    assert table.loc[0, "on_class"] == 1 and (table.loc[1:5, "on_patch"] == 1).all()
    assert table.loc[3, "on_border"] == 1 and table.loc[4, "on_high_norm"] == 1
    assert table.loc[1, "by_row"] > 0.75 and table.loc[1, "by_column"] < 0.1
    assert table.loc[2, ["by_row", "by_column", "by_place"]].min() > 0.6
    assert table.loc[5, ["by_row", "by_column", "by_place"]].max() < 0.05
    assert table.loc[6, ["on_class", "on_patch", "on_high_norm", "by_place"]].isna().all()


def test_a_latent_that_fires_twice_is_not_called_driven_by_its_places(planted):
    table = table_of(*planted)
    assert table.loc[7, "token_type"] == "" and table.loc[7, "by_place"] < 0.5


def test_token_types_move_with_the_latents_and_ignore_strength(planted):
    z, norms = planted
    order = np.random.default_rng(1).permutation(8)
    moved = table_of(z[:, :, order] * 7, norms)
    pd.testing.assert_frame_equal(moved, table_of(z, norms).loc[order].reset_index(drop=True))


def test_localisation_of_a_latent_on_the_object_beside_one_that_only_knows_the_image():
    rng = np.random.default_rng(0)
    coverage = np.zeros((N, 48), np.float32)
    place = rng.integers(48, size=N)
    coverage[np.arange(N), place] = 1
    red = rng.random(N) < 0.5
    z = np.zeros((N, 48, 3))
    z[red, place[red], 0] = 1  # on the object
    z[red, (place[red] + 24) % 48, 1] = 1  # in the right images, elsewhere
    z[:, :, 2] = rng.random((N, 48))  # anywhere
    best = pd.DataFrame({"attribute": "colour", "class": ["red", "red", "red", "blue"], "latent": [0, 1, 2, 0]})
    table, hit, seen = token_types.localisation(small.coded(z), coverage, best, {("colour", "red"): red})
    assert hit[red].all(0).tolist() == [True, False, False] and (seen[:, 0] == red).all()
    table = table.set_index("latent")
    assert len(table) == 3  # blue is not known here
    assert table.loc[0, ["patch_auroc", "patch_precision", "patch_recall", "pointing"]].tolist() == [1, 1, 1, 1]
    assert table.loc[1, "patch_auroc"] == pytest.approx(0.5, abs=0.02) and table.loc[1, "pointing"] == 0
    assert table.loc[2, "patch_auroc"] == pytest.approx(0.5, abs=0.1)
    assert table.loc[2, "pointing"] < 0.2 and table.loc[0, "pointing_chance"] == pytest.approx(1 / 48)
