"""The choice of active latents: the k largest pre-activations of each token, by comparisons of 64 numbers at once.

Pre-activations come as integers with the same bits, from bfloat16, float32 or float64: for positive floats these are
ordered as the floats are, and a range of them can be halved. Compiled as `kernels` are.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic
from numba.np import arrayobj

from sae.kernels.step import compiled

_GROUP = 8
_LANES = 64  # numbers that are compared at once; the result is one word of this many bits


@intrinsic
def _above(_typing, numbers, start, cut):
    """Returns 64 bits: numbers[start + i] > cut. LLVM has instructions for it that it does not find in a loop."""

    def build(context, builder, signature, given):
        array = arrayobj.make_array(signature.args[0])(context, builder, given[0])
        lanes = ir.VectorType(context.get_data_type(signature.args[0].dtype), _LANES)
        place = builder.bitcast(builder.gep(array.data, [given[1]]), lanes.as_pointer())
        first = builder.insert_element(ir.Constant(lanes, ir.Undefined), given[2], ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
        cuts = builder.shuffle_vector(first, first, everywhere)
        above = builder.icmp_signed(">", builder.load(place, align=1), cuts)
        return builder.bitcast(above, ir.IntType(_LANES))

    return types.uint64(numbers, types.int64, numbers.dtype), build


@intrinsic
def _copy_group(_typing, numbers, start, target, place):
    """Copies a group of numbers. In a loop LLVM copies them one by one: for all it knows the arrays overlap."""
    if (numbers.layout, target.layout) != ("C", "C"):
        raise TypingError("rows must lie in memory one after the other")

    def build(context, builder, signature, given):
        group = ir.VectorType(context.get_data_type(signature.args[0].dtype), _GROUP).as_pointer()
        ends = []
        for which in (0, 2):
            array = arrayobj.make_array(signature.args[which])(context, builder, given[which])
            ends.append(builder.bitcast(builder.gep(array.data, [given[which + 1]]), group))
        builder.store(builder.load(ends[0], align=1), ends[1], align=1)
        return context.get_dummy_value()

    return types.void(numbers, types.int64, target, types.int64), build


@intrinsic
def _ones(_typing, bits):
    """Returns how many bits are 1."""
    return types.int64(types.uint64), lambda _context, builder, _signature, given: builder.ctpop(given[0])


@intrinsic
def _lowest(_typing, bits):
    """Returns the place of the lowest bit that is 1; there must be one."""

    def build(_context, builder, _signature, given):
        return builder.cttz(given[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), build


@compiled
def _exceeding(numbers, cut):
    """Returns the number of values above the cut; the number of all values must be a multiple of 64."""
    count = 0
    for start in range(0, len(numbers), _LANES):
        count += _ones(_above(numbers, start, cut))
    return count


@compiled
def _find(numbers, cut, places):
    """Writes the places of the values above the cut, ascending; returns their number."""
    found = 0
    for start in range(0, len(numbers), _LANES):
        bits = _above(numbers, start, cut)
        while bits:
            places[found] = start + _lowest(bits)
            bits &= bits - np.uint64(1)
            found += 1
    return found


@compiled
def _whole(count):
    """Returns the smallest multiple of 64 that is not below the number."""
    return (count + _LANES - 1) // _LANES * _LANES


@compiled
def largest(bits, k, row, shift, indices, values):
    """Writes the k largest of each row of pre-activations, where positive, to rows row, row + 1, … of indices, values.

    Exact; of equal latents the lower one wins. Latents ascend; places left over, where fewer than k are positive, get
    the last latent and value 0. The k largest lie in the k groups of 8 with the largest maxima: so first the groups are
    found, then the latents in them, both times by halving the range that holds the cut.

    Args:
        bits: memory of the pre-activations [m, F], of bfloat16, float32 or float64, as integers of the same size.
        k: at most F.
        shift: by how many bits `values` is longer than `bits`: 16 for bfloat16, otherwise 0.
        indices: int32 [n, k].
        values: memory of floats [n, k], as integers.
    """
    m, latents = bits.shape
    integer = bits.dtype.type
    octave = 1 << (7 if bits.itemsize == 2 else 23 if bits.itemsize == 4 else 52)  # added to its bits, doubles a float
    whole, groups = latents // _GROUP, (latents + _GROUP - 1) // _GROUP
    maxima = np.zeros(_whole(groups), bits.dtype)
    hits = np.empty(groups, np.int32)
    rank = np.empty(_whole(groups * _GROUP), bits.dtype)
    kept = np.empty(groups * _GROUP, np.int32)
    for r in range(m):
        line = bits[r]
        for g in range(whole):
            best = line[g * _GROUP]
            for i in range(1, _GROUP):
                best = max(best, line[g * _GROUP + i])
            maxima[g] = best
        if whole < groups:
            maxima[whole] = line[whole * _GROUP :].max()
        most = max(maxima.max(), integer(0))

        # A floor that at least k maxima exceed, and only few more; 0 if fewer than k are positive. It is usually not
        # far below the largest maximum.
        floor, ceiling, middle = integer(0), most, integer(max(integer(1), most - 4 * octave))
        while ceiling - floor > 1:
            above = _exceeding(maxima, middle)
            if above >= k:
                floor = middle
                if above < k + _GROUP:
                    break
            else:
                ceiling = middle
            middle = integer(floor + (ceiling - floor) // 2)
        found = _find(maxima, floor, hits)
        for h in range(found):
            if hits[h] < whole:
                _copy_group(line, hits[h] * _GROUP, rank, h * _GROUP)
            else:
                rank[h * _GROUP : (h + 1) * _GROUP] = 0
                for i in range(whole * _GROUP, latents):
                    rank[h * _GROUP + i - whole * _GROUP] = line[i]

        # A limit that at most k candidates exceed; the others of the k, if any, are equal to it.
        candidates = rank[: _whole(found * _GROUP)]
        candidates[found * _GROUP :] = 0
        least, limit, above = floor, floor, _exceeding(candidates, floor)
        ties = 0
        if above > k:
            limit = most
            while limit - least > 1:
                middle = integer(least + (limit - least) // 2)
                above = _exceeding(candidates, middle)
                if above > k:
                    least = middle
                else:
                    limit = middle
                    if above == k:
                        break
            ties = k - _exceeding(candidates, limit)
        place = 0
        for c in kept[: _find(candidates, integer(limit - (ties > 0)), kept)]:
            if candidates[c] > limit or ties > 0:
                ties -= candidates[c] == limit
                indices[row + r, place] = hits[c // _GROUP] * _GROUP + c % _GROUP
                values[row + r, place] = values.dtype.type(candidates[c]) << shift
                place += 1
        for rest in range(place, k):
            indices[row + r, rest], values[row + r, rest] = latents - 1, 0


@compiled
def above(bits, cut, row, shift, counts, latents, values):
    """Writes the latents of pre-activations [m, F] above `cut`, row after row, with their values.

    Args:
        bits, shift, values: see `largest`. cut: the bits of a number that is not negative.
        counts: counts[row + r] becomes the number of those of row r.
    """
    place = 0
    for r in range(bits.shape[0]):
        start = place
        for i in range(bits.shape[1]):
            if bits[r, i] > cut:
                latents[place], values[place] = i, values.dtype.type(bits[r, i]) << shift
                place += 1
        counts[row + r] = place - start
