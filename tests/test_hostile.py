"""Folders, names and files that nobody wants: each is used as it should be, or is in the manifest with its reason."""

from pathlib import Path

import numpy as np
import pytest
from hostile import corners_of, fill

from sae import images


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The folder, what must become of each path, and its manifest by path."""
    folder = tmp_path_factory.mktemp("hostile") / "pictures {x} 'n' \"$HOME\" é\n"
    kinds = fill(folder)
    return folder, kinds, images.build_manifest(folder, held_out=0.4).set_index("path")


def test_every_file_is_in_the_manifest_as_it_should_be(corpus):
    _folder, kinds, table = corpus
    assert len(kinds) >= 150
    assert set(table.index) == {path for path, kind in kinds.items() if kind.status}
    wrong = [
        (path, table.at[path, "status"], table.at[path, "reason"])
        for path, kind in kinds.items()
        if kind.status and (table.at[path, "status"] != kind.status or kind.reason not in table.at[path, "reason"])
    ]
    assert not wrong
    unused = table[table["status"] != "ok"]
    assert unused["reason"].str.fullmatch(r"[ -~é]{5,200}").all(), unused["reason"].tolist()  # a short line, no more


def test_every_image_looks_as_a_person_sees_it(corpus):
    folder, kinds, table = corpus
    for path, kind in kinds.items():
        if kind.status == "ok":
            image = images.read_image(folder / path)
            assert image.mode == "RGB" and image.size == (table.at[path, "width"], table.at[path, "height"]), path
            assert np.abs(corners_of(image) - kind.corners).max() <= 12, (path, corners_of(image), kind.corners)
