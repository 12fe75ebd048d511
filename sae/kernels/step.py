"""The loops of the sparse step on a CPU, compiled by numba: operations that are cheap on k-sparse codes.

Each kernel works on a range of rows or latents of its arrays and releases the GIL, so that threads share the work; the
result does not depend on how the threads share it. All take float32 or float64. u is [n, d]. Codes are pairs (latent,
value): those of token t stand at places offsets[t] to offsets[t + 1], latents ascending. Tokens come in chunks of a few
hundred, whose rows of width d fit into a core's cache, where random access is fast.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

# Sums may be reordered, so that they can use vector instructions. NaN and infinity keep their meaning. A kernel that
# sums floats may call only functions that numba inlines: the order of the sums would depend on whether a called kernel
# comes from the cache or was compiled in this run, and an interrupted run would give other weights than an
# uninterrupted one.
_FAST = {"reassoc", "contract", "arcp", "nsz"}


def compiled(function: Any) -> Any:
    """Compiles a function at its first call; keeps the result for later processes where a folder can be written."""
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": _FAST}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # a read-only installation and no home, as in containers
        return njit(**options)(function)


BLOCK = 256  # latents whose gradients stay in a core's cache


@intrinsic
def _as_float(_typing, bits):
    """The bits of a float32 -> the float32."""
    return types.float32(types.int32), lambda _context, builder, _signature, given: builder.bitcast(
        given[0], ir.FloatType()
    )


def _real(number):
    """A float, or a bfloat16's bits -> the float."""


@overload(_real, inline="always")
def _compile_real(number):
    if number == types.int16:
        return lambda number: _as_float(np.int32(number) << np.int32(16))
    return lambda number: number


def _store(numbers, out):
    """Copies floats; returns the factor of the copies, which is 1 except for int8.

    Into bfloat16's bits, from float32: to the nearest, of two equally near ones to the even. Into int8: to the nearest
    of the multiples of the largest / 127.
    """


@overload(_store, inline="always")
def _compile_store(numbers, out):
    def copy(numbers, out):
        out[:] = numbers
        return numbers.dtype.type(1)

    def round_off(numbers, out):
        bits = numbers.view(np.int32)
        sixteen, one, half = np.int32(16), np.int32(1), np.int32(0x7FFF)
        for c in range(len(out)):
            odd = (bits[c] >> sixteen) & one
            out[c] = np.int16((bits[c] + half + odd) >> sixteen)
        return numbers.dtype.type(1)

    def quantise(numbers, out):
        bits, most = numbers.view(np.int32), np.int32(1)
        for c in range(len(out)):  # the bits of positive floats are in the floats' order, and faster to compare
            most = max(most, bits[c] & np.int32(0x7FFFFFFF))
        scale = _as_float(most) / np.float32(127)
        factor = np.float32(1) / scale
        for c in range(len(out)):
            out[c] = np.int8(np.rint(numbers[c] * factor))
        return scale

    return {types.int16: round_off, types.int8: quantise}.get(out.dtype, copy)


@compiled
def fold(first, last, encoder, bias, decoder, gain, shift, low_encoder, low_bias, low_decoder, scales):
    """Writes encoder ∘ gain, bias + encoder · shift, and the decoder: as they are, or as bfloat16's bits.

    The encoder also as int8; scales [F] become the factors of its rows.
    """
    numbers, folded = np.empty(encoder.shape[1], encoder.dtype), np.empty(last - first, encoder.dtype)
    for i in range(first, last):
        total = bias[i]
        for c in range(len(numbers)):
            numbers[c] = encoder[i, c] * gain[c]
            total += encoder[i, c] * shift[c]
        folded[i - first] = total
        scales[i] = _store(numbers, low_encoder[i])
        _store(decoder[i], low_decoder[i])
    _store(folded, low_bias[first:last])


@compiled
def standardise(raw, row, mean, scale, target, low):
    """Writes (raw - mean) · scale to rows row, row + 1, … of target, and to low, which may hold bfloat16's bits."""
    for r in range(len(raw)):
        for c in range(len(mean)):
            target[row + r, c] = (raw[r, c] - mean[c]) * scale
        _store(target[row + r], low[row + r])


@compiled
def quantise(first, last, u, low, scales):
    """Writes u, also given as bfloat16's bits, to low [n, d], int8; scales [n] become the factors of its rows."""
    numbers = np.empty(u.shape[1], scales.dtype)
    for t in range(first, last):
        for c in range(len(numbers)):
            numbers[c] = _real(u[t, c])
        scales[t] = _store(numbers, low[t])


@compiled
def dequantise(products, rows, columns, bias):
    """Turns products [m, F] of two int8 matrices into float32, in place: rows [m] · columns [F] · products + bias."""
    out = products.view(np.float32)
    for r in range(len(products)):
        row = rows[r]
        for c in range(len(columns)):
            out[r, c] = row * columns[c] * np.float32(products[r, c]) + bias[c]


@compiled
def errors(first, last, offsets, latents, values, decoder, bias, target, sign, ends, missed, slopes, squares, by_bias):
    """Writes the error of each prefix of the dictionary against sign · target.

    missed[g, t] = Σ_{h ≥ g} (Σ_{i < ends[h]} z_i decoder[i] + bias - sign · target[t]): the summed error of all
    prefixes that contain block g; up to a factor, the gradient for that block's contribution. One prefix, ends = [F],
    is an ordinary SAE.

    Args:
        decoder: [F, d], also as bfloat16's bits.
        target: [n, d], also as bfloat16's bits. sign: 1 or -1.
        ends: [G], ascending, the last F. missed: [G, n, d], also as bfloat16's bits.
        slopes: as values; becomes missed · decoder[i] of each code.
        squares: [prefixes], becomes the Σ of squares of each prefix's error.
        by_bias: [d], becomes Σ_t missed[0, t].
    """
    prefixes, width, zero = len(ends), target.shape[1], bias.dtype.type(0)
    stops = np.empty(prefixes, np.int64)
    lines = np.empty((prefixes, width), bias.dtype)
    squares[:], by_bias[:] = 0, 0
    for t in range(first, last):
        lines[:] = 0
        for c in range(width):
            lines[0, c] = bias[c] - sign * _real(target[t, c])
        p, end = offsets[t], offsets[t + 1]
        while end > p and values[end - 1] == 0:  # places left over
            end -= 1
        for g in range(prefixes):
            line, stop = lines[g], p
            while stop < end and latents[stop] < ends[g]:
                stop += 1
            stops[g] = stop
            while p + 4 <= stop:  # four at once: the line is read and written a quarter as often
                z0, z1, z2, z3 = values[p], values[p + 1], values[p + 2], values[p + 3]
                row0, row1 = decoder[latents[p]], decoder[latents[p + 1]]
                row2, row3 = decoder[latents[p + 2]], decoder[latents[p + 3]]
                for c in range(width):
                    line[c] += z0 * _real(row0[c]) + z1 * _real(row1[c]) + z2 * _real(row2[c]) + z3 * _real(row3[c])
                p += 4
            while p < stop:
                z0, row0 = values[p], decoder[latents[p]]
                for c in range(width):
                    line[c] += z0 * _real(row0[c])
                p += 1
        for g in range(prefixes):
            total = zero
            for c in range(width):
                if g:
                    lines[g, c] += lines[g - 1, c]
                total += lines[g, c] * lines[g, c]
            squares[g] += total
        for g in range(prefixes - 1, -1, -1):
            if g < prefixes - 1:
                lines[g] += lines[g + 1]
            _store(lines[g], missed[g, t])
        for c in range(width):
            by_bias[c] += lines[0, c]
        p = offsets[t]
        for g in range(prefixes):
            line, stop = lines[g], stops[g]
            while p + 4 <= stop:
                row0, row1 = decoder[latents[p]], decoder[latents[p + 1]]
                row2, row3 = decoder[latents[p + 2]], decoder[latents[p + 3]]
                slope0, slope1, slope2, slope3 = zero, zero, zero, zero
                for c in range(width):
                    slope0 += line[c] * _real(row0[c])
                    slope1 += line[c] * _real(row1[c])
                    slope2 += line[c] * _real(row2[c])
                    slope3 += line[c] * _real(row3[c])
                slopes[p], slopes[p + 1], slopes[p + 2], slopes[p + 3] = slope0, slope1, slope2, slope3
                p += 4
            while p < stop:
                row0, slope0 = decoder[latents[p]], zero
                for c in range(width):
                    slope0 += line[c] * _real(row0[c])
                slopes[p] = slope0
                p += 1


@compiled
def by_latent(first, last, offsets, latents, values, slopes, starts, tokens, z, g):
    """Sorts the codes above 0 of a chunk of tokens by latent: those of latent i stand at starts[i] to starts[i + 1].

    Args:
        starts: [F + 1]; places in the whole batch's tokens, z and g, which are as long as values.
    """
    starts[:] = 0
    for p in range(offsets[first], offsets[last]):
        starts[latents[p] + 1] += values[p] > 0
    starts[0] = offsets[first]
    for i in range(len(starts) - 1):
        starts[i + 1] += starts[i]
    place = starts[:-1].copy()
    for t in range(first, last):
        for p in range(offsets[t], offsets[t + 1]):
            if values[p] > 0:
                at = place[latents[p]]
                tokens[at], z[at], g[at] = t, values[p], slopes[p]
                place[latents[p]] = at + 1


@compiled
def gradients(first, last, starts, tokens, z, g, missed, ends, u, factor, by_encoder, by_bias, by_decoder):
    """Writes the gradients of latents first to last.

    by_decoder[i] = factor · Σ_t z missed_t, by_encoder[i] = factor · Σ_t g u_t, by_bias[i] = factor · Σ_t g, over the
    tokens on which i is active.

    Args:
        starts: [chunks, F + 1], of `by_latent`. missed: [G, n, d], of `errors`. It and u also as bfloat16's bits.
    """
    width = u.shape[1]
    by_decoder[first:last] = 0
    by_encoder[first:last] = 0
    by_bias[first:last] = 0
    for block in range(first, last, BLOCK):
        for chunk in range(len(starts)):
            group = 0
            for i in range(block, min(block + BLOCK, last)):
                while i >= ends[group]:
                    group += 1
                wrong, out, encoder = missed[group], by_decoder[i], by_encoder[i]
                p, stop = starts[chunk, i], starts[chunk, i + 1]
                while p + 4 <= stop:
                    z0, z1, z2, z3 = factor * z[p], factor * z[p + 1], factor * z[p + 2], factor * z[p + 3]
                    g0, g1, g2, g3 = factor * g[p], factor * g[p + 1], factor * g[p + 2], factor * g[p + 3]
                    e0, e1, e2, e3 = wrong[tokens[p]], wrong[tokens[p + 1]], wrong[tokens[p + 2]], wrong[tokens[p + 3]]
                    u0, u1, u2, u3 = u[tokens[p]], u[tokens[p + 1]], u[tokens[p + 2]], u[tokens[p + 3]]
                    for c in range(width):
                        out[c] += z0 * _real(e0[c]) + z1 * _real(e1[c]) + z2 * _real(e2[c]) + z3 * _real(e3[c])
                    for c in range(width):
                        encoder[c] += g0 * _real(u0[c]) + g1 * _real(u1[c]) + g2 * _real(u2[c]) + g3 * _real(u3[c])
                    by_bias[i] += g0 + g1 + g2 + g3
                    p += 4
                while p < stop:
                    z0, g0, e0, u0 = factor * z[p], factor * g[p], wrong[tokens[p]], u[tokens[p]]
                    for c in range(width):
                        out[c] += z0 * _real(e0[c])
                        encoder[c] += g0 * _real(u0[c])
                    by_bias[i] += g0
                    p += 1


@compiled
def finish(
    first, last, by_encoder, by_bias, by_decoder, encoder, decoder, gain, shift, unit_norm, frozen, squares, by_input
):
    """Turns the gradient by the folded encoder into that by W_enc.

    Where the encoder sees gain ∘ u + shift: dW_enc = gain ∘ by_encoder + by_bias ⊗ shift. With `unit_norm`, the
    component along the decoder's rows is removed from the decoder's gradient. With `frozen`, the encoder's gradients
    become 0.

    Args:
        first: a multiple of BLOCK.
        squares: [blocks]; becomes the Σ of squares of both gradients.
        by_input: [blocks, 2, d]; become the gradients by gain and by shift.
    """
    for i in range(first, last):
        row, weights, out, into = decoder[i], encoder[i], by_decoder[i], by_encoder[i]
        block = i // BLOCK
        if i % BLOCK == 0:
            squares[block], by_input[block] = 0, 0
        by_gain, by_shift = by_input[block, 0], by_input[block, 1]
        along, total = row.dtype.type(0), row.dtype.type(0)
        for c in range(len(row)):
            along += out[c] * row[c]
        for c in range(len(row)):
            by_gain[c] += weights[c] * into[c]
            by_shift[c] += weights[c] * by_bias[i]
            into[c] = 0 if frozen else gain[c] * into[c] + by_bias[i] * shift[c]
            if unit_norm:
                out[c] -= along * row[c]
            total += into[c] * into[c] + out[c] * out[c]
        if frozen:
            by_bias[i] = 0
        squares[block] += total


@compiled
def adam(first, last, weights, moment, square, gradient, scale, rate, keep, keep2, fix_moment, fix_square, normalise):
    """Adam (Kingma & Ba 2015; ε 1e-8) on rows of weights; returns their Σ of squares, to see divergence.

    Args:
        scale: of the gradient, below 1 where it is clipped.
        keep, keep2: β of the moment and of the square. fix_moment, fix_square: 1 / (1 - βᵗ) of the two.
        normalise: give each row norm 1 afterwards.
    """
    real = weights.dtype.type
    mix, mix2, tiny = real(1) - keep, real(1) - keep2, real(1e-8)
    total = 0.0
    for i in range(first, last):
        w, m, v, g = weights[i], moment[i], square[i], gradient[i]
        squares = real(0)
        for c in range(len(w)):
            slope = g[c] * scale
            m[c] = keep * m[c] + mix * slope
            v[c] = keep2 * v[c] + mix2 * slope * slope
            w[c] -= rate * (m[c] * fix_moment) / (np.sqrt(v[c] * fix_square) + tiny)
            squares += w[c] * w[c]
        total += squares
        if normalise:
            length = real(1) / max(np.sqrt(squares), real(1e-12))
            for c in range(len(w)):
                w[c] *= length
    return total
