"""The loops of the sparse step on a CPU, compiled by numba: what a k-sparse code makes cheap and dense products do not.

Each kernel works on the rows [first, last) of its arrays and releases the GIL, so that threads share the work; a row's
result does not depend on how the work was cut. All take float32 or float64. u is [n, d], codes are pairs (latent,
value): those of token t stand at places offsets[t] to offsets[t + 1], latents ascending.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Sums may be reordered, which is what lets them use vector instructions. NaN and infinity keep their meaning.
_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})
_GROUP = 8


@_compiled
def largest(pre, bits, k, row, indices, values):
    """Writes the k largest of each row of pre [m, F], where positive, to rows row, row + 1, … of indices and values.

    Exact; of equal latents the lower one wins. Latents ascend; places left over, where fewer than k are positive, get
    the last latent and value 0. The k largest lie in the k groups with the largest maxima. Both selections halve the
    range of the bits, which for positive floats are ordered as the floats are.

    Args:
        bits: pre's memory as integers of the same size.
        k: at most F.
        indices, values: [n, k].
    """
    m, latents = pre.shape
    whole, groups = latents // _GROUP, (latents + _GROUP - 1) // _GROUP
    maxima = np.zeros(groups, bits.dtype)
    chosen = np.empty(latents, np.int32)
    rank = np.empty(latents, bits.dtype)
    for r in range(m):
        line = bits[r]
        for g in range(whole):
            best = line[g * _GROUP]
            for i in range(1, _GROUP):
                best = max(best, line[g * _GROUP + i])
            maxima[g] = best
        if whole < groups:
            maxima[whole] = line[whole * _GROUP :].max()

        floor, ceiling = 0, np.int64(maxima.max())
        while ceiling - floor > 1:  # to a floor that at least k maxima exceed, and few more
            middle = floor + (ceiling - floor) // 2
            above = 0
            for g in range(groups):
                above += maxima[g] > middle
            if above >= k:
                floor = middle
                if above < k + _GROUP:
                    break
            else:
                ceiling = middle
        found = 0
        for g in range(groups):
            if maxima[g] > floor:
                for i in range(g * _GROUP, min((g + 1) * _GROUP, latents)):
                    chosen[found], rank[found] = i, line[i]
                    found += line[i] > floor

        # To a limit that at most k candidates exceed, the others of the k being equal to it.
        least, limit = floor, np.int64(np.iinfo(bits.dtype).max) if found > k else floor
        above = 0
        while limit - least > 1:
            middle = least + (limit - least) // 2
            above = 0
            for c in range(found):
                above += rank[c] > middle
            if above > k:
                least = middle
            else:
                limit = middle
                if above == k:
                    break
        ties = 0
        if found > k:
            ties = k
            for c in range(found):
                ties -= rank[c] > limit
        place = 0
        for c in range(found):
            if rank[c] > limit or (ties > 0 and rank[c] == limit):
                ties -= rank[c] == limit
                indices[row + r, place], values[row + r, place] = chosen[c], pre[r, chosen[c]]
                place += 1
        for rest in range(place, k):
            indices[row + r, rest], values[row + r, rest] = latents - 1, 0


@_compiled
def above(pre, cut, row, counts, latents, values):
    """Writes the latents of pre [m, F] above `cut`, row after row, with their values; counts[row + r]: how many."""
    place = 0
    for r in range(pre.shape[0]):
        start = place
        for i in range(pre.shape[1]):
            if pre[r, i] > cut:
                latents[place], values[place] = i, pre[r, i]
                place += 1
        counts[row + r] = place - start


@_compiled
def exact(first, last, offsets, latents, values, u, weights, bias):
    """Replaces the codes' values, selected in low precision, by ReLU(u · weights[i] + bias[i])."""
    for t in range(first, last):
        for p in range(offsets[t], offsets[t + 1]):
            if values[p] > 0:
                total = bias[latents[p]]
                for c in range(u.shape[1]):
                    total += u[t, c] * weights[latents[p], c]
                values[p] = max(total, 0)


@_compiled
def errors(first, last, offsets, latents, values, decoder, bias, target, ends, out):
    """Writes how far each prefix of the dictionary misses the target; returns Σ of squares, [prefixes].

    out[g, t] = Σ_{h ≥ g} (Σ_{i < ends[h]} z_i decoder[i] + bias - target[t]): what the latents of the g-th block, which
    lie in all prefixes from the g-th on, are to blame for. One prefix, ends = [F], is an ordinary SAE.

    Args:
        target: [n, d]. ends: [G], ascending, the last F. out: [G, n, d].
    """
    prefixes, width = len(ends), target.shape[1]
    squares = np.zeros(prefixes)
    for t in range(first, last):
        for g in range(prefixes):
            out[g, t] = 0
        for c in range(width):
            out[0, t, c] = bias[c] - target[t, c]
        p, end = offsets[t], offsets[t + 1]
        for g in range(prefixes):
            line, stop = out[g, t], p
            while stop < end and latents[stop] < ends[g]:
                stop += 1
            while p + 4 <= stop:  # four at once: the line is read and written a quarter as often
                z0, z1, z2, z3 = values[p], values[p + 1], values[p + 2], values[p + 3]
                row0, row1 = decoder[latents[p]], decoder[latents[p + 1]]
                row2, row3 = decoder[latents[p + 2]], decoder[latents[p + 3]]
                for c in range(width):
                    line[c] += z0 * row0[c] + z1 * row1[c] + z2 * row2[c] + z3 * row3[c]
                p += 4
            while p < stop:
                z0, row0 = values[p], decoder[latents[p]]
                for c in range(width):
                    line[c] += z0 * row0[c]
                p += 1
        for g in range(prefixes):
            total = out.dtype.type(0)
            for c in range(width):
                if g:
                    out[g, t, c] += out[g - 1, t, c]
                total += out[g, t, c] * out[g, t, c]
            squares[g] += total
        for g in range(prefixes - 2, -1, -1):
            for c in range(width):
                out[g, t, c] += out[g + 1, t, c]
    return squares


@_compiled
def by_latent(offsets, latents, values, starts, tokens, z):
    """Sorts the codes above 0 by latent, tokens ascending: those of latent i stand at starts[i] to starts[i + 1].

    Args:
        starts: [F + 1]. tokens, z: as long as values.
    """
    starts[:] = 0
    for p in range(len(values)):
        if values[p] > 0:
            starts[latents[p] + 1] += 1
    for i in range(len(starts) - 1):
        starts[i + 1] += starts[i]
    place = starts[:-1].copy()
    for t in range(len(offsets) - 1):
        for p in range(offsets[t], offsets[t + 1]):
            if values[p] > 0:
                at = place[latents[p]]
                tokens[at], z[at] = t, values[p]
                place[latents[p]] = at + 1


@_compiled
def gradients(first, last, starts, tokens, z, decoder, blame, ends, u, factor, by_decoder, by_encoder, by_bias):
    """Writes the gradients of latents first to last, from e = factor · blame of their block and g = e · decoder[i].

    by_decoder[i] = Σ_t z e_t, by_encoder[i] = Σ_t g u_t, by_bias[i] = Σ_t g, over the tokens on which i is active.

    Args:
        blame: [G, n, d], of `errors`.
    """
    width, group = u.shape[1], 0
    for i in range(first, last):
        while i >= ends[group]:
            group += 1
        wrong, row, out, encoder = blame[group], decoder[i], by_decoder[i], by_encoder[i]
        out[:] = 0
        encoder[:] = 0
        bias = u.dtype.type(0)
        for p in range(starts[i], starts[i + 1]):
            e, x = wrong[tokens[p]], u[tokens[p]]
            g = u.dtype.type(0)
            for c in range(width):
                g += e[c] * row[c]
            bias += g
            for c in range(width):
                out[c] += z[p] * e[c]
                encoder[c] += g * x[c]
        for c in range(width):
            out[c] *= factor
            encoder[c] *= factor
        by_bias[i] = bias * factor


@_compiled
def finish(first, last, gain, shift, by_bias, by_encoder, by_decoder, decoder, unit_norm):
    """Turns the gradient by the folded encoder into that by W_enc; returns the Σ of squares of both gradients.

    Where the encoder sees gain ∘ u + shift: dW_enc = gain ∘ by_encoder + by_bias ⊗ shift. With `unit_norm`, what points
    along the decoder's rows is removed from the decoder's gradient.
    """
    total = 0.0
    for i in range(first, last):
        row, out, encoder = decoder[i], by_decoder[i], by_encoder[i]
        along = row.dtype.type(0)
        for c in range(len(row)):
            along += out[c] * row[c]
        squares = row.dtype.type(0)
        for c in range(len(row)):
            encoder[c] = gain[c] * encoder[c] + by_bias[i] * shift[c]
            if unit_norm:
                out[c] -= along * row[c]
            squares += encoder[c] * encoder[c] + out[c] * out[c]
        total += squares
    return total


@_compiled
def adam(first, last, weights, moment, square, gradient, scale, rate, fix_moment, fix_square, normalise):
    """Adam (Kingma & Ba 2015; β .9 and .999, ε 1e-8) on rows of weights; returns their Σ of squares, to see divergence.

    Args:
        scale: of the gradient, below 1 where it is clipped.
        fix_moment, fix_square: 1 / (1 - βᵗ) of the two.
        normalise: give each row norm 1 afterwards.
    """
    real = weights.dtype.type
    keep, mix, keep2, mix2, tiny = real(0.9), real(0.1), real(0.999), real(0.001), real(1e-8)
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
