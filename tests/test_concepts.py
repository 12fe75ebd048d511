"""The built-in images."""

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from sae import concepts


def test_an_image_depends_on_its_seed_and_index_alone():
    a, b = concepts.draw(3, 17), concepts.draw(3, 17)
    np.testing.assert_array_equal(a.image, b.image)
    assert a.factors == b.factors
    assert not np.array_equal(a.image, concepts.draw(3, 18).image)
    assert not np.array_equal(a.image, concepts.draw(4, 17).image)


def test_factors_are_balanced_and_independent():
    drawn = pd.DataFrame([concepts.draw(0, i).factors for i in range(600)])
    for name, values in concepts.FACTORS.items():
        share = drawn[name].value_counts(normalize=True)
        assert set(share.index) == set(values)
        assert abs(share - 1 / len(values)).max() < 0.1
    codes = drawn.apply(lambda column: column.astype("category").cat.codes)
    correlation = codes.corr().to_numpy() - np.eye(len(codes.columns))
    assert np.abs(correlation).max() < 0.15


def test_the_mask_is_where_the_object_is():
    for i in range(40):
        concept = concepts.draw(1, i)
        assert set(np.unique(concept.mask)) == ({0, 1, 2} if concept.companion else {0, 1})
        main, rest = concept.image[concept.mask == 1] / 255.0, concept.image[concept.mask == 0] / 255.0
        assert np.ptp(main, axis=1).mean() > np.ptp(rest, axis=1).mean() + 0.1  # objects are saturated
        assert (concept.mask == 1).sum() > (concept.mask == 2).sum()
        rows, columns = np.nonzero(concept.mask == 1)
        vertical, horizontal = concept.factors["position"].split()
        if concept.factors["size"] == "small":
            assert abs(rows.mean() - {"top": 36, "middle": 56, "bottom": 76}[vertical]) < 12
            assert abs(columns.mean() - {"left": 36, "centre": 56, "right": 76}[horizontal]) < 12


def test_larger_objects_cover_more():
    area = {"small": [], "medium": [], "large": []}
    for i in range(200):
        concept = concepts.draw(2, i)
        area[concept.factors["size"]].append((concept.mask == 1).sum())
    assert np.mean(area["small"]) * 1.5 < np.mean(area["medium"]) < np.mean(area["large"]) / 1.5


def test_write_keeps_the_ground_truth(tmp_path):
    concepts.write(tmp_path, 12, seed=5)
    table = pd.read_csv(tmp_path / "images" / "labels.csv")
    masks = np.load(tmp_path / "masks.npy")
    assert len(table) == len(masks) == 12
    one = concepts.draw(5, 7)
    assert table.loc[7, "label"] == one.label
    assert table.loc[7, list(one.factors)].to_dict() == one.factors
    np.testing.assert_array_equal(masks[7], one.mask)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "images" / table.loc[7, "path"])), one.image)


def test_coverage_is_the_share_of_each_patch_that_the_object_covers(tmp_path):
    masks = np.zeros((3, 112, 112), np.uint8)
    masks[0, 16:32, 32:48] = 1  # one patch of 7 x 7
    masks[1, :, :56] = 1
    masks[1, 60:, 60:] = 2  # the companion does not count
    np.save(tmp_path / "masks.npy", masks)

    def see(image):
        return np.asarray(image).transpose(2, 0, 1)

    coverage = concepts.coverage(tmp_path / "masks.npy", ["00001.png", "00000.png"], see, (7, 7)).reshape(2, 7, 7)
    np.testing.assert_allclose(coverage[0], np.repeat([[1, 1, 1, 0.5, 0, 0, 0]], 7, 0))
    assert coverage[1, 1, 2] == 1 and coverage[1].sum() == 1


def test_pairs_differ_in_one_factor_and_nothing_else():
    def spread(mask, by):
        return np.asarray(Image.fromarray(mask * np.uint8(255)).filter(by)) > 0

    for i in range(12):
        first, others = concepts.variants(2, i)
        assert [*others] == [*concepts.FACTORS]
        for name, second in others.items():
            different = {key for key in concepts.FACTORS if first.factors[key] != second.factors[key]}
            assert different == {name}
            same = (first.image == second.image).all(2)
            if name == "background":
                inside = spread(first.mask == 1, ImageFilter.MinFilter(5))
                assert same[inside].mean() > 0.99 and not same[~inside].all()  # but for edges inside a cross
            else:
                touched = spread(first.mask > 0, ImageFilter.MaxFilter(5)) | spread(
                    second.mask > 0, ImageFilter.MaxFilter(5)
                )
                assert same[~touched].all() and not same[touched].all()
            if name in ("colour", "texture", "background"):
                np.testing.assert_array_equal(first.mask, second.mask)
            assert (first.companion is None) and (second.companion is None) == (name != "objects")
    np.testing.assert_array_equal(concepts.variants(2, 0)[1]["shape"].image, concepts.variants(2, 0)[1]["shape"].image)
