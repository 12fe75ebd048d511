"""The loops of the sparse step on a GPU, in Triton: operations that are cheap on k-sparse codes.

Codes are pairs (latent, value). Those of token t stand at places t·k to (t+1)·k, or with RAGGED at places offsets[t] to
offsets[t+1], latents ascending; a place left over has value 0. No kernel uses atomic operations, so a result depends on
nothing but its input. Matrices are contiguous; WIDTH, SIZE and GROUPS are powers of 2, at least d, F and the number of
prefixes. All take float32 or float64, and matrices called low also bfloat16.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def standardise(raw, mean, scale, target, low, width, WIDTH: tl.constexpr):
    """Writes (raw - mean) · scale to target [n, d] and to low [n, d]. One program per token."""
    t = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    inside = c < width
    x = tl.load(raw + t * width + c, inside, 0).to(target.dtype.element_ty)
    x = (x - tl.load(mean + c, inside, 0)) * tl.load(scale)
    tl.store(target + t * width + c, x, inside)
    tl.store(low + t * width + c, x.to(low.dtype.element_ty), inside)


@triton.jit
def _keys(pre, row, i, size, allowed, MASKED: tl.constexpr):
    """Returns the bits of a row's values as integers, in their order: 0 where not above 0, -1 behind the end."""
    key = tl.load(pre + row * size + i, i < size, 0)
    key = key if pre.dtype.element_ty == tl.int64 else key.to(tl.int32)
    key = tl.maximum(key, 0)
    if MASKED:
        key = tl.where(tl.load(allowed + i, i < size, 0) != 0, key, 0)
    return tl.where(i < size, key, -1)


@triton.jit
def _write(
    pre, allowed, row, size, cut, wanted, place, latents, values, BITS: tl.constexpr, CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Writes a row's codes above the cut and as many equal to it, the first, as are wanted."""
    ties = tl.full([], 0, tl.int32)
    for first in range(0, size, CHUNK):
        i = first + tl.arange(0, CHUNK)
        key = _keys(pre, row, i, size, allowed, MASKED)
        above, equal = key > cut, key == cut
        one = (above.to(tl.int32) << 16) + equal.to(tl.int32)
        upto = tl.cumsum(one, 0)
        tied = ties + (upto & 0xFFFF) - equal.to(tl.int32)
        keep = above | (equal & (tied < wanted))
        own = (upto >> 16) - above.to(tl.int32) + tl.minimum(tied, wanted) - tl.minimum(ties, wanted)
        if BITS == 16:
            value = key.to(tl.int16).to(tl.bfloat16, bitcast=True)
        elif BITS == 32:
            value = key.to(tl.float32, bitcast=True)
        else:
            value = key.to(tl.float64, bitcast=True)
        tl.store(latents + place + own, i, keep)
        tl.store(values + place + own, value.to(values.dtype.element_ty), keep)
        found = tl.sum(one, 0)
        ended = ties + (found & 0xFFFF)
        place += (found >> 16) + tl.minimum(ended, wanted) - tl.minimum(ties, wanted)
        ties = ended


@triton.jit(do_not_specialize=["k"])
def largest(
    pre, allowed, latents, values, size, k, BITS: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Writes the k largest codes of each token, of equal ones the first. One program per token.

    Args:
        pre: Bits of the pre-activations [n, F], integers of BITS bits.
        allowed: With MASKED, bool [F]: other latents get value 0.
        latents: int32 [n, k]. values: [n, k].
    """
    row = tl.program_id(0).to(tl.int64)
    key = _keys(pre, row, tl.arange(0, SIZE), size, allowed, MASKED)
    cut = tl.full([], 0, key.dtype)
    for bit in tl.static_range(BITS - 1):
        guess = cut + (1 << (BITS - 2 - bit))
        cut = tl.where(tl.sum((key >= guess).to(tl.int32), 0) >= k, guess, cut)
    wanted = k - tl.sum((key > cut).to(tl.int32), 0)
    _write(pre, allowed, row, size, cut, wanted, row * k, latents, values, BITS, CHUNK, MASKED)


@triton.jit
def count(pre, cut, counts, size, SIZE: tl.constexpr):
    """Writes how many pre-activations of each token are at least the cut, and how many equal to it. For `above`.

    Args:
        pre: As in `largest`. cut: The bits of one value, int64 []. counts: int32 [2, n].
    """
    row = tl.program_id(0).to(tl.int64)
    key, least = _keys(pre, row, tl.arange(0, SIZE), size, pre, False), tl.load(cut)
    tl.store(counts + row, tl.sum((key >= least).to(tl.int32), 0))
    tl.store(counts + tl.num_programs(0) + row, tl.sum((key == least).to(tl.int32), 0))


@triton.jit
def above(pre, cut, wanted, offsets, latents, values, size, BITS: tl.constexpr, CHUNK: tl.constexpr):
    """Writes the codes of each token above the cut, and of those equal to it the first ones. One program per token.

    Args:
        pre, cut: As in `count`. wanted: int32 [n], of the codes equal to the cut. offsets: int64 [n+1].
    """
    row = tl.program_id(0).to(tl.int64)
    place, own = tl.load(offsets + row), tl.load(wanted + row)
    _write(pre, pre, row, size, tl.load(cut), own, place, latents, values, BITS, CHUNK, False)


@triton.jit
def _stop(latents, start, last, end, ALL: tl.constexpr, AT_ONCE: tl.constexpr):
    """Returns the place from `start` on behind the last latent below `end`, or with ALL the last place."""
    stop = last
    if not ALL:
        stop = start
        for p in range(start, last, AT_ONCE):
            at = p + tl.arange(0, AT_ONCE)
            stop += tl.sum((tl.load(latents + at, at < last, end) < end).to(tl.int64), 0)
    return stop


@triton.jit(do_not_specialize=["k", "sign"])
def errors(
    offsets,
    latents,
    values,
    decoder,
    bias,
    target,
    sign,
    ends,
    missed,
    slopes,
    squares,
    k,
    width,
    COUNT: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Writes the error of each prefix of the dictionary against sign · target. One program per token.

    missed[g, t] = Σ_{h ≥ g} (Σ_{i < ends[h]} z_i decoder[i] + bias - sign · target[t]): the summed error of all
    prefixes that contain block g; up to a factor, the gradient for that block's contribution. One prefix, ends = [F],
    is an ordinary SAE.

    Args:
        decoder: Low [F, d]. target: Low [n, d]. sign: 1 or -1.
        ends: int32 [COUNT], ascending, the last F. missed: Low [COUNT, n, d].
        slopes: As values; becomes the error missed · decoder[i] of each code's block.
        squares: [n, COUNT], becomes the Σ of squares of each prefix's error.
    """
    t = tl.program_id(0).to(tl.int64)
    c, group, at_once = tl.arange(0, WIDTH), tl.arange(0, GROUPS), tl.arange(0, AT_ONCE)
    inside = c < width
    real = bias.dtype.element_ty
    first, last = t * k, t * k + k
    if RAGGED:
        first, last = tl.load(offsets + t), tl.load(offsets + t + 1)
    line = tl.load(bias + c, inside, 0) - sign * tl.load(target + t * width + c, inside, 0).to(real)
    lines = tl.zeros([GROUPS, WIDTH], real)
    start = first
    for g in tl.static_range(COUNT):
        stop = _stop(latents, start, last, tl.load(ends + g), g == COUNT - 1, AT_ONCE)
        for p in range(start, stop, AT_ONCE):
            use = p + at_once < stop
            i, z = tl.load(latents + p + at_once, use, 0), tl.load(values + p + at_once, use, 0)
            place = i[:, None].to(tl.int64) * width + c[None, :]
            rows = tl.load(decoder + place, (z != 0)[:, None] & inside[None, :], 0).to(real)
            line += tl.sum(z[:, None] * rows, 0)
        lines = tl.where((group == g)[:, None], line[None, :], lines)
        tl.store(squares + t * COUNT + g, tl.sum(line * line, 0))
        start = stop
    start = first
    for g in tl.static_range(COUNT):
        stop = _stop(latents, start, last, tl.load(ends + g), g == COUNT - 1, AT_ONCE)
        line = tl.sum(tl.where((group >= g)[:, None], lines, 0), 0)
        token = g * tl.num_programs(0).to(tl.int64) + t
        tl.store(missed + token * width + c, line.to(missed.dtype.element_ty), inside)
        for p in range(start, stop, AT_ONCE):
            use = p + at_once < stop
            i, z = tl.load(latents + p + at_once, use, 0), tl.load(values + p + at_once, use, 0)
            place = i[:, None].to(tl.int64) * width + c[None, :]
            rows = tl.load(decoder + place, (z != 0)[:, None] & inside[None, :], 0).to(real)
            tl.store(slopes + p + at_once, tl.sum(rows * line[None, :], 1), use)
        start = stop


@triton.jit(do_not_specialize=["k", "n"])
def gradients(
    owners,
    pieces,
    starts,
    order,
    tokens,
    values,
    slopes,
    missed,
    ends,
    u,
    by_encoder,
    by_bias,
    by_decoder,
    size,
    n,
    k,
    width,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PIECE: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Sums over one piece of the tokens of a latent: z · missed, slope · u and slope. One program per piece.

    A latent's codes are cut into pieces of PIECE, so that no program has much more to do than the others.

    Args:
        owners: [pieces], the latent of each piece; F where there is none. pieces: [F], the number of its first piece.
        starts: [F+1], of each latent's places in order. order: The places of the codes, sorted by latent.
        tokens: With RAGGED, the token of each place.
        by_encoder, by_decoder: [pieces, d]. by_bias: [pieces].
    """
    item = tl.program_id(0).to(tl.int64)
    i = tl.load(owners + item)
    if i < size:
        c, at_once = tl.arange(0, WIDTH), tl.arange(0, AT_ONCE)
        inside = c < width
        real = by_bias.dtype.element_ty
        group = tl.full([], 0, tl.int64)
        for h in tl.static_range(COUNT):
            group += (i >= tl.load(ends + h)).to(tl.int64)
        first = tl.load(starts + i) + (item - tl.load(pieces + i)) * PIECE
        last = tl.minimum(first + PIECE, tl.load(starts + i + 1))
        encoder, decoder, bias = tl.zeros([WIDTH], real), tl.zeros([WIDTH], real), tl.zeros([AT_ONCE], real)
        for p in range(first, last, AT_ONCE):
            use = p + at_once < last
            place = tl.load(order + p + at_once, use, 0)
            token = tl.load(tokens + place, use, 0).to(tl.int64) if RAGGED else place // k
            z, slope = tl.load(values + place, use, 0), tl.load(slopes + place, use, 0)
            there = use[:, None] & inside[None, :]
            at = token[:, None] * width + c[None, :]
            decoder += tl.sum(z[:, None] * tl.load(missed + group * n * width + at, there, 0).to(real), 0)
            encoder += tl.sum(slope[:, None] * tl.load(u + at, there, 0).to(real), 0)
            bias += slope
        tl.store(by_encoder + item * width + c, encoder, inside)
        tl.store(by_decoder + item * width + c, decoder, inside)
        tl.store(by_bias + item, tl.sum(bias, 0))


@triton.jit
def _summed(pieces, counts, factor, from_encoder, from_bias, from_decoder, i, c, width, inside):
    """Returns factor · Σ of a latent's pieces: by the encoder [WIDTH], the bias, the decoder [WIDTH]."""
    first, count, weight = tl.load(pieces + i), tl.load(counts + i), tl.load(factor)
    encoder = tl.zeros_like(c).to(from_encoder.dtype.element_ty)
    decoder, bias = encoder, weight * 0
    for piece in range(first, first + count):
        encoder += tl.load(from_encoder + piece * width + c, inside, 0)
        decoder += tl.load(from_decoder + piece * width + c, inside, 0)
        bias += tl.load(from_bias + piece)
    return encoder * weight, bias * weight, decoder * weight


@triton.jit
def finish(
    pieces, counts, factor, from_encoder, from_bias, from_decoder,
    more_pieces, more_counts, more_factor, more_encoder, more_bias, more_decoder,
    by_encoder, by_bias, by_decoder, by_folded, decoder, shift, squares, width,
    WIDTH: tl.constexpr, MORE: tl.constexpr, UNIT_NORM: tl.constexpr, ENCODER: tl.constexpr, DECODER: tl.constexpr,
):  # fmt: skip
    """Sums the pieces of a latent, and turns the gradient by the folded encoder into that by W_enc.

    One program per latent. The encoder sees u - shift: dW_enc = Σ slope · u - Σ slope ⊗ shift. With UNIT_NORM, the
    component along the decoder's row is removed from the decoder's gradient. Without ENCODER or DECODER, their
    gradients become 0.

    Args:
        pieces, counts: [F], the number of the first piece, and of pieces. factor: []. from_…: See `gradients`.
        more_…: The same of a second pass, whose gradients are added with MORE.
        by_folded: [F], becomes Σ slope, also without ENCODER. squares: [F], the Σ of squares of the latent's gradients.
    """
    i = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    inside, at = c < width, i * width + c
    into, bias, out = _summed(pieces, counts, factor, from_encoder, from_bias, from_decoder, i, c, width, inside)
    if MORE:
        into_too, bias_too, out_too = _summed(
            more_pieces, more_counts, more_factor, more_encoder, more_bias, more_decoder, i, c, width, inside
        )
        into, bias, out = into + into_too, bias + bias_too, out + out_too
    tl.store(by_folded + i, bias)
    into -= bias * tl.load(shift + c, inside, 0)
    if UNIT_NORM:
        row = tl.load(decoder + at, inside, 0)
        out -= tl.sum(out * row, 0) * row
    if not ENCODER:
        into, bias = tl.zeros_like(into), bias * 0
    if not DECODER:
        out = tl.zeros_like(out)
    tl.store(by_encoder + at, into, inside)
    tl.store(by_bias + i, bias)
    tl.store(by_decoder + at, out, inside)
    tl.store(squares + i, tl.sum(into * into, 0) + tl.sum(out * out, 0) + bias * bias)


@triton.jit
def _adam(weights, moment, square, gradient, at, inside, scale, rate, keep, keep2, count):
    """Adam (Kingma & Ba 2015; ε 1e-8): returns the new weights, and writes the state."""
    slope = tl.load(gradient + at, inside, 0) * scale
    m = tl.load(moment + at, inside, 0)
    v = tl.load(square + at, inside, 0)
    m = keep * m + (1 - keep) * slope
    v = keep2 * v + (1 - keep2) * slope * slope
    tl.store(moment + at, m, inside)
    tl.store(square + at, v, inside)
    fix, fix2 = 1 - tl.exp2(count * tl.log2(keep)), 1 - tl.exp2(count * tl.log2(keep2))
    return tl.load(weights + at, inside, 0) - rate * (m / fix) / (tl.sqrt(v / fix2) + 1e-8)


@triton.jit
def update_bias(bias, moment, square, gradient, scale, rate, betas, count, width, WIDTH: tl.constexpr):
    """Does Adam's step for the decoder's bias, after counting it. One program."""
    c = tl.arange(0, WIDTH)
    inside, step = c < width, tl.load(count) + 1
    keep, keep2 = tl.load(betas), tl.load(betas + 1)
    new = _adam(bias, moment, square, gradient, c, inside, tl.load(scale), tl.load(rate), keep, keep2, step)
    tl.store(bias + c, new, inside)
    tl.store(count, step)


@triton.jit
def update(
    encoder, encoder_moment, encoder_square, by_encoder,
    bias, bias_moment, bias_square, by_bias,
    decoder, decoder_moment, decoder_square, by_decoder,
    start, held, shift, low_encoder, low_bias, low_decoder, scale, rate, betas, count, width,
    WIDTH: tl.constexpr, UNIT_NORM: tl.constexpr, HELD: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """Does Adam's step for a latent's weights and writes them as they are multiplied. One program per latent.

    Args:
        start: With HELD, [F, d]: the decoder's rows of norm 1 keep at least the cosine `held` with these.
        shift: b_dec [d]; the encoder's bias is folded with it.
        low_…: The weights for the products.
        scale, rate, count: []. betas: [2].
    With FOLD, nothing is done but the last.
    """
    i = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    inside, at = c < width, i * width + c
    if FOLD:
        into, out, first = tl.load(encoder + at, inside, 0), tl.load(decoder + at, inside, 0), tl.load(bias + i)
    else:
        factor, lr, step = tl.load(scale), tl.load(rate), tl.load(count)
        keep, keep2 = tl.load(betas), tl.load(betas + 1)
        into = _adam(encoder, encoder_moment, encoder_square, by_encoder, at, inside, factor, lr, keep, keep2, step)
        out = _adam(decoder, decoder_moment, decoder_square, by_decoder, at, inside, factor, lr, keep, keep2, step)
        first = _adam(bias, bias_moment, bias_square, by_bias, i, i >= 0, factor, lr, keep, keep2, step)
        if UNIT_NORM:
            out = out / tl.maximum(tl.sqrt(tl.sum(out * out, 0)), 1e-12)
        if HELD:
            centre = tl.load(start + at, inside, 0)
            along = tl.sum(out * centre, 0)
            across = out - along * centre
            across = across / tl.maximum(tl.sqrt(tl.sum(across * across, 0)), 1e-12)
            out = tl.where(along < held, held * centre + tl.sqrt(1 - held * held) * across, out)
            out = out / tl.maximum(tl.sqrt(tl.sum(out * out, 0)), 1e-12)
        tl.store(encoder + at, into, inside)
        tl.store(decoder + at, out, inside)
        tl.store(bias + i, first)
    first -= tl.sum(into * tl.load(shift + c, inside, 0), 0)
    tl.store(low_encoder + at, into.to(low_encoder.dtype.element_ty), inside)
    tl.store(low_decoder + at, out.to(low_decoder.dtype.element_ty), inside)
    tl.store(low_bias + i, first.to(low_bias.dtype.element_ty))
