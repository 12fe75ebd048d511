"""The choice of the k largest latents."""

import numba
import numpy as np
import pytest
import torch

from sae.kernels import topk


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
def test_the_k_largest_are_exact(kind):
    rng = np.random.default_rng(0)
    wide = torch.float64 if kind == torch.float64 else torch.float32  # bfloat16 is written out as float32
    integer = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
    for trial in range(400):
        latents = int(rng.integers(1, 70)) if trial % 5 else int(rng.integers(500, 900))
        k, rows = int(rng.integers(1, latents + 1)), int(rng.integers(1, 5))
        pre = torch.from_numpy(rng.standard_normal((rows, latents))).to(kind)
        if trial % 3 == 0:
            pre = pre.round()  # ties, zeros and negative zeros
        if trial % 7 == 0:
            pre = -pre.abs()
        if trial % 11 == 0:
            pre[:] = 1e-30
        indices, values = np.full((rows + 1, k), -7, np.int32), torch.full((rows + 1, k), -7, dtype=wide)
        shift = 16 if kind == torch.bfloat16 else 0
        topk.largest(pre.view(integer[kind]).numpy(), k, 1, shift, indices, values.view(integer[wide]).numpy())
        assert (values[0] == -7).all()
        for line, chosen, found in zip(pre.to(wide).numpy(), indices[1:], values[1:].numpy(), strict=True):
            order = np.sort(np.argsort(-line, kind="stable")[:k])
            order = order[line[order] > 0]
            np.testing.assert_array_equal(chosen[found > 0], order)
            np.testing.assert_array_equal(found[found > 0], line[order])
            assert (np.diff(chosen) >= 0).all() and chosen.min() >= 0 and (found >= 0).all()


def test_rows_that_are_not_in_order_in_memory_are_refused():
    pre = np.zeros((40, 300), np.int32).T
    with pytest.raises(numba.TypingError, match="one after the other"):
        topk.largest(pre, 3, 0, 0, np.zeros((300, 3), np.int32), np.zeros((300, 3), np.int32))
