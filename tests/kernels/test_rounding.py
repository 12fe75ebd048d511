"""Numbers rounded for faster products, by the kernels of a step."""

import numpy as np
import torch

from sae.kernels import step


def test_bfloat16_is_rounded_as_torch_rounds_it():
    raw = torch.randn(300, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-20, 20, 64)
    raw[0, :5] = torch.tensor([0.0, torch.inf, -torch.inf, 1 + 2**-8, 1 + 3 * 2**-8])  # the last two lie half-way
    target, low = np.empty((301, 64), np.float32), np.zeros((301, 64), np.int16)
    step.standardise(raw.numpy(), 1, np.zeros(64, np.float32), np.float32(1), target, low)
    assert torch.equal(torch.from_numpy(low[1:]).view(torch.bfloat16), raw.bfloat16())


def test_int8_is_rounded_to_the_nearest_part_of_the_largest():
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((9, 33)) * np.logspace(-20, 20, 9)[:, None]).astype(np.float32)
    rows[0], rows[1, 3], rows[2, 5], rows[3, 7] = 0, -1e9, np.nan, np.inf
    low, scales = np.full(rows.shape, 99, np.int8), np.full(9, np.nan, np.float32)
    step.quantise(0, 9, rows, low, scales)
    for row, got, scale in zip(rows, low, scales, strict=True):
        if not np.isfinite(row).all():
            assert not np.isfinite(scale)  # and so is all that it is multiplied with
            continue
        most = np.abs(row).max()
        assert scale == most / np.float32(127)
        if most:
            assert np.abs(got).max() == 127
            assert np.abs(got * np.float64(scale) - row).max() <= scale * 0.5001

    low[0] = 0
    columns, bias = rng.standard_normal(40).astype(np.float32), rng.standard_normal(40).astype(np.float32)
    weights = rng.integers(-127, 128, (40, 33))
    products = (low.astype(np.int64) @ weights.T).astype(np.int32)
    finite = np.isfinite(scales)
    expected = scales[finite, None].astype(np.float64) * columns * products[finite] + bias
    step.dequantise(products, scales, columns, bias)
    got = products.view(np.float32)
    np.testing.assert_allclose(got[finite], expected, rtol=1e-5)
    assert finite.sum() == 7 and not np.isfinite(got[~finite]).all(1).any()
