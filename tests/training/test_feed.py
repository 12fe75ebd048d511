"""The order of batches, and reading them ahead."""

import numpy as np
import pytest

from sae.errors import InputError
from sae.files import ahead
from sae.store import Activations


def test_whole_images_stay_together():
    x = Activations(
        [np.arange(24, dtype=np.float32).reshape(6, 4, 1)],
        np.arange(6),
        np.array([(0, i) for i in range(6)]),
        slice(None),
    )
    batches = list(x.shuffled(2, np.random.default_rng(0), whole_images=True))
    assert [len(b) for b in batches] == [8, 8, 8]
    assert all((np.diff(b.reshape(2, 4), axis=1) == 1).all() for b in batches)
    assert sorted(np.concatenate(batches).ravel()) == list(range(24))


def test_row_numbers_come_in_the_order_of_the_rows():
    x = Activations(
        [np.arange(60, dtype=np.float32).reshape(10, 3, 2)],
        np.arange(10),
        np.array([(0, i) for i in range(10)]),
        slice(None),
    )
    everything = x.read(np.arange(10)).reshape(-1, 2)
    for whole_images in (False, True):
        rows = list(x.shuffled(4, np.random.default_rng(0), whole_images))
        places = list(x.shuffled(4, np.random.default_rng(0), whole_images, x.places))
        assert [len(p) for p in places] == [len(r) for r in rows]
        for part, place in zip(rows, places, strict=True):
            np.testing.assert_array_equal(everything[place], part)
        assert sorted(np.concatenate(places)) == list(range(30))


def test_what_is_read_ahead_keeps_order_and_errors():
    assert list(ahead(iter(range(50)), depth=3)) == list(range(50))

    def failing():
        yield 1
        raise InputError("a shard is damaged")

    items = ahead(failing())
    assert next(items) == 1
    with pytest.raises(InputError, match="damaged"):
        next(items)
    assert next(ahead(iter(range(10**9)))) == 0  # left early: its thread ends
