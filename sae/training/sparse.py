"""The training step by sparse kernels, for the k-sparse methods on a CPU; see `steps` for the loss."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sae import device as devices
from sae.kernels import step, topk
from sae.training.step import Rows, Step

_ROWS = 512  # tokens in a chunk: their errors and inputs fit into a core's own cache
_PRE_ACTIVATIONS = 3 * 2**18  # how many of them a thread holds at once
_INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


class SparseStep(Step):
    """The step by sparse kernels. Its results do not depend on the number of threads.

    With e the error's gradient by x̂, g_ti = e_t · W_dec[i] the gradient by an active latent and u what stands in front
    of the encoder's gain and shift (which are 1 and -b_dec, or the LayerNorm's):

        dW_dec[i] = Σ_t z_ti e_t,    dW_enc[i] = gain ∘ Σ_t g_ti u_t + shift · Σ_t g_ti,    db_enc[i] = Σ_t g_ti

    over the tokens t on which i is active. A token costs 2·d·F for the encoder's product and 8·k·d for the rest, where
    dense differentiation costs 10·d·F. In bf16, u, encoder, decoder, pre-activations and e are rounded to bfloat16
    where they are multiplied: half the memory to gather from. In int8, u and encoder are rounded to 8 bits for the
    encoder's product alone, each row by its own scale: at half the cost, pre-activations are off by about a hundredth
    of their deviation, and of the k largest nearly as many are found as in bfloat16, which has no more than 8 bits.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        sae = self.sae
        self._values = {name: p.detach().numpy() for name, p in self.trained.items()}
        self._gradients = {name: torch.zeros_like(p).numpy() for name, p in self.trained.items()}
        self._adam = {
            f"{m}.{name}": torch.zeros_like(p) for name, p in self.trained.items() for m in ("moment", "square")
        }
        self._updated = {}
        for name, value in self._values.items():
            moments = (self._adam[f"{moment}.{name}"].numpy() for moment in ("moment", "square"))
            self._updated[name] = [a.reshape(len(a), -1) for a in (value, *moments, self._gradients[name])]
        self._int8 = self.precision == "int8"
        # The folded encoder and the decoder, as they are multiplied.
        low = sae.b_dec.dtype if self.precision == "fp32" else torch.bfloat16
        kinds = {"W_enc": torch.int8, "b_enc": sae.b_dec.dtype, "W_dec": low} if self._int8 else {}
        self._low = {name: torch.empty(v.shape, dtype=kinds.get(name, low)) for name, v in self._of_latents().items()}
        self._scales = np.ones(sae.config.latents, self._values["b_dec"].dtype)  # of the folded encoder's rows
        self._folded = False
        self._rows = _ROWS
        self._last: dict[str, float] = {}
        self._cut = 0  # BatchTopK's last threshold, as bits
        self._kept: dict[str, np.ndarray] = {}
        # Each thread runs its own products: torch's threads would wait for the kernels, and the kernels for them.
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(max(1, self._threads - 1), initializer=torch.set_num_threads, initargs=(1,))
        torch.set_num_threads(1)

    def close(self) -> None:
        self._pool.shutdown()
        torch.set_num_threads(self._threads)

    def report(self) -> dict[str, float]:
        return self._last | {"dead": np.count_nonzero(self.silent.numpy() > self.dead_after) / len(self.silent)}

    def _moments(self) -> dict[str, torch.Tensor]:
        return self._adam

    def _of_latents(self) -> dict[str, np.ndarray]:
        """Returns the parameters with a row per latent."""
        return {name: self._values[name] for name in ("W_enc", "b_enc", "W_dec")}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        super().restore(state)
        self._folded = False

    def _fold(self, first: int, last: int) -> None:
        """Renews what is multiplied of these latents."""
        low = (_plain(value) for value in self._low.values())
        step.fold(first, last, *self._of_latents().values(), *self._affine(), *low, self._scales)

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns gain and shift: the encoder sees gain ∘ u + shift."""
        if self.sae.config.input == "layernorm":
            return self._values["norm.weight"], self._values["norm.bias"]
        return np.ones_like(self._values["b_dec"]), -self._values["b_dec"]

    def __call__(self, raw: torch.Tensor | Rows, lr: float) -> None:
        squares = self.gradients(raw)
        scale = 1.0
        if self.recipe.clip is not None:
            scale = min(1.0, self.recipe.clip / (math.sqrt(squares) + 1e-6)) if math.isfinite(squares) else 1.0
        self.count += 1
        keep, keep2 = self.recipe.betas
        numbers = (scale, lr, keep, keep2, 1 / (1 - keep**self.count), 1 / (1 - keep2**self.count))
        numbers = [self._values["b_dec"].dtype.type(number) for number in numbers]

        def update(names: Iterable[str], first: int, last: int) -> float:
            size = 0.0
            for name in names:
                normalise = name == "W_dec" and self.recipe.decoder == "unit_norm"
                size += step.adam(first, last, *self._updated[name], *numbers, normalise)
            return size

        def update_latents(first: int, last: int) -> float:
            size = update(of_latents, first, last)
            self._fold(first, last)
            return size

        of_latents = self._of_latents()
        size = update(self._values.keys() - of_latents, 0, self.sae.config.width)
        size += sum(self._over_latents(update_latents))
        if not math.isfinite(size):
            self._last["loss"] = math.nan

    @torch.no_grad()
    def gradients(self, raw: torch.Tensor | Rows) -> float:
        """Computes the gradients of all parameters at rows [n, d], as they are before clipping; Σ of their squares."""
        width, latents, real = self.sae.config.width, self.sae.config.latents, self._values["b_dec"].dtype
        n, silent, out = len(raw), self.silent.numpy(), self._gradients
        if not self._folded:
            self._over_latents(self._fold)
            self._folded = True
        dead = np.flatnonzero(silent > self.dead_after) if self.recipe.auxk else np.empty(0, np.int64)
        whole, revived = self._encode(raw, dead)

        power, size = float(whole.squares[:, -1].sum()), n * width * len(self.ends)
        loss, factor = float(whole.squares.sum()) / size, 2 / size
        arrays, codes = [out[name] for name in self._of_latents()], whole.by_latent(factor)
        weights = self._values["W_enc"], self._values["W_dec"], *self._affine(), self.recipe.decoder == "unit_norm"
        blocks = -(-latents // step.BLOCK)
        squares, by_input = np.empty(blocks), np.empty((blocks, 2, width), real)
        if revived is not None and power > 0:
            loss += self.recipe.auxk * float(revived.squares.sum()) / power
            own_codes = revived.by_latent(2 * self.recipe.auxk / power)
            own = [np.empty_like(array[dead]) for array in arrays]

        def differentiate(first: int, last: int) -> None:
            step.gradients(first, last, *codes, *arrays)
            if revived is not None and power > 0:
                low, high = np.searchsorted(dead, (first, last))
                step.gradients(low, high, *own_codes, *own)
                for array, more in zip(arrays, own, strict=True):
                    array[dead[low:high]] += more[low:high]
            if self.recipe.decoder == "frozen":
                out["W_dec"][first:last] = 0
            step.finish(first, last, *arrays, *weights, squares, by_input)

        self._over_latents(differentiate)
        by_gain, by_shift = by_input.sum(0)
        out["b_dec"][:] = whole.by_bias.sum(0) * real.type(factor)
        if "norm.weight" in out:
            out["norm.weight"][:], out["norm.bias"][:] = by_gain, by_shift
        else:
            out["b_dec"] -= by_shift
        silent += n
        silent[(whole.starts[:, 1:] > whole.starts[:, :-1]).any(0)] = 0
        l0 = int((whole.starts[:, -1] - whole.starts[:, 0]).sum()) / n
        self._last = {"loss": loss, "error": power / (n * width), "l0": l0}
        small = (np.square(gradient, dtype=np.float64).sum() for name, gradient in out.items() if name[:2] != "W_")
        return float(squares.sum() + sum(small))

    def _encode(self, raw: torch.Tensor | Rows, dead: np.ndarray) -> tuple[_Pass, _Pass | None]:
        """Encodes and decodes rows [n, d]; then, where there are dead latents, what the reconstruction misses by these.

        Chunk by chunk, so that nothing that is gathered has left the cache before it is needed again.
        """
        sae, n = self.sae, len(raw)
        width, k, real = sae.config.width, sae.config.k, self._values["b_dec"].dtype
        layernorm, batchtopk = sae.config.input == "layernorm", sae.config.method == "batchtopk"
        target = self._array("target", (n, width), real)
        exact = self.precision == "fp32"
        u = torch.from_numpy(target) if exact and not layernorm else self._low_array("u", (n, width))
        mean, scale, bias = sae.mean.numpy(), real.type(sae.scale), self._values["b_dec"]
        scales = self._array("scales", (n,), real)
        seen = torch.from_numpy(self._array("seen", (n, width), np.int8)) if self._int8 else u
        encoder = _Encoder(seen, scales, self._low["W_enc"], self._scales, self._low["b_enc"], self._products)
        decoder, ends = self._low["W_dec"], self.ends

        def prepare(first: int, last: int) -> None:
            part = raw[first:last].to(sae.b_dec.dtype).numpy()
            step.standardise(part, first, mean, scale, target, target if layernorm else _plain(u))
            if layernorm:
                u[first:last] = F.layer_norm(torch.from_numpy(target[first:last]), (width,), eps=sae.norm.eps)
            if self._int8:
                step.quantise(first, last, _plain(u), seen.numpy(), scales)

        if batchtopk:
            self._over(n, self._rows, prepare)
            whole = _Pass(self, "", u, encoder, decoder, ends, *self._of_the_batch(encoder, k * n))
        else:
            whole = _Pass(self, "", u, encoder, decoder, ends, *self._room("", n, k))
        revived, nothing = None, np.zeros_like(bias)
        if len(dead):
            index = torch.from_numpy(dead)
            few = min(max(1, width // 2), len(dead))
            own = encoder.weights[index], self._scales[dead], encoder.bias[index]
            encoder = _Encoder(seen, scales, *own, self._products)
            revived = _Pass(self, "revived ", u, encoder, decoder[index], [len(dead)], *self._room("revived ", n, few))

        def encode(first: int, last: int) -> None:
            if not batchtopk:
                prepare(first, last)
                whole.choose(first, last, k)
            whole.decode(first, last, bias, target)
            if revived is not None:
                revived.choose(first, last, few)
                revived.decode(first, last, nothing, whole.blame[-1], -1)

        self._over(n, self._rows, encode)
        return whole, revived

    def _room(self, role: str, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns offsets, latents and values of k codes for each of n tokens, yet to be chosen."""
        real = self._values["b_dec"].dtype
        return (
            np.arange(n + 1) * k,
            self._array(f"{role}latents", (n * k,), np.int32),
            self._array(f"{role}values", (n * k,), real),
        )

    def _of_the_batch(self, encoder: _Encoder, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the codes of BatchTopK: the `wanted` largest positive pre-activations of the batch.

        What exceeds a guess is collected, so that the others need no memory; a guess that was too high is halved.
        """
        n, latents = len(encoder.seen), len(encoder.bias)
        octave = 1 << encoder.mantissa  # what halving takes from the bits of a float
        if self._cut:
            guess = max(0, self._cut - octave // 2)
        else:
            head = next(encoder.bits(0, n))[1].ravel()
            place = max(0, len(head) - 1 - int(1.5 * wanted / (n * latents) * len(head)))
            guess = max(0, int(np.partition(head, place)[place]))
        counts = np.zeros(n, np.int64)
        real = self._values["b_dec"].dtype

        def collect(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
            chosen, values = [], []
            for row, bits in encoder.bits(first, last):
                room = int((bits > guess).sum())
                chosen.append(np.empty(room, np.int32))
                values.append(np.empty(room, real))
                found = counts, chosen[-1], _bits(values[-1])
                topk.above(bits, bits.dtype.type(guess), row, encoder.shift, *found)
            return np.concatenate(chosen), np.concatenate(values)

        while True:
            parts = self._over(n, self._rows, collect)
            if guess == 0 or counts.sum() >= wanted:
                break
            guess = max(0, guess - octave)
        chosen, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        tokens = np.repeat(np.arange(n), counts)
        if len(values) > wanted:
            cut = np.partition(values, len(values) - wanted)[len(values) - wanted]
            spare = wanted - int((values > cut).sum())  # of those equal to the cut, the first
            keep = values > cut
            keep[np.flatnonzero(values == cut)[:spare]] = True
            tokens, chosen, values = tokens[keep], chosen[keep], values[keep]
        if len(values):
            least = values.min()
            self._cut = int(_bits(np.array([least]))[0]) >> encoder.shift
            self.sae.threshold += (float(least) - self.sae.threshold) * self._rate()
        return np.append(0, np.cumsum(np.bincount(tokens, minlength=n))), chosen, values

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Returns an array with anything in it. Its memory is used again: new pages cost a tenth of a step."""
        size = math.prod(shape)
        if name not in self._kept or len(self._kept[name]) < size:
            self._kept[name] = _aligned(size, dtype)
        return self._kept[name][:size].reshape(shape)

    def _products(self, rows: int, latents: int) -> torch.Tensor:
        """Returns memory for products of int8, of the thread that asks."""
        return torch.from_numpy(self._array(f"products {threading.get_ident()}", (rows, latents), np.int32))

    def _low_array(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """As `_array`, for what is multiplied."""
        if self.precision != "fp32":
            return torch.from_numpy(self._array(name, shape, np.int16)).view(torch.bfloat16)
        return torch.from_numpy(self._array(name, shape, self._values["b_dec"].dtype))

    def _over_latents(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """As `_over`, for all latents, in pieces of whole blocks."""
        latents = self.sae.config.latents
        blocks = -(-latents // (step.BLOCK * 2 * self._threads))
        return self._over(latents, blocks * step.BLOCK, function, *arguments)

    def _over(self, total: int, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Returns function(first, last, *arguments) for the pieces of [0, total), in order, by the threads."""
        pieces, results = deque(range(0, total, size)), {}

        def work() -> None:
            while pieces:
                try:
                    first = pieces.popleft()
                except IndexError:  # another thread was faster
                    return
                results[first] = function(first, min(first + size, total), *arguments)

        helpers = [self._pool.submit(work) for _ in range(min(self._threads, len(pieces)) - 1)]
        try:
            work()
        finally:
            errors = [helper.exception() for helper in helpers]  # waits for them
        for error in filter(None, errors):
            raise error
        return [results[first] for first in range(0, total, size)]


@dataclass(frozen=True)
class _Encoder:
    """What it sees [n, d], and the folded encoder's weights [F, d] and bias [F], as they are multiplied.

    scales [n], [F]: what the rows of the two matrices are to be multiplied by, where these are int8. products: returns
    memory [m, F] for their products.
    """

    seen: torch.Tensor
    seen_scales: np.ndarray
    weights: torch.Tensor
    weight_scales: np.ndarray
    bias: torch.Tensor
    products: Callable[[int, int], torch.Tensor]

    @property
    def mantissa(self) -> int:
        """How many of a pre-activation's bits follow its exponent."""
        return {torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}[self.bias.dtype]

    @property
    def shift(self) -> int:
        """By how many bits the codes' values are longer than the product's: bfloat16 becomes float32."""
        return 16 if self.bias.dtype == torch.bfloat16 else 0

    def bits(self, first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields pre-activations of these rows: a first row, and a block [m, F] as integers with the same bits."""
        size = max(32, _PRE_ACTIVATIONS // len(self.bias))
        for row in range(first, last, size):
            seen = self.seen[row : min(row + size, last)]
            if self.weights.dtype == torch.int8:
                products = torch._int_mm(seen, self.weights.T, out=self.products(len(seen), len(self.bias))).numpy()
                step.dequantise(products, self.seen_scales[row:], self.weight_scales, self.bias.numpy())
                yield row, products
            else:
                pre = devices.linear(seen, self.weights, self.bias)
                yield row, pre.view(_INTEGERS[self.bias.dtype]).numpy()


class _Pass:
    """The codes of a batch, chosen, decoded and sorted by chunk and latent; see `kernels` for its arrays.

    Args:
        role: keeps the arrays of two passes apart that are in use at once.
        decoder: [F, d], as it is multiplied.
        ends: of the prefixes that reconstruct on their own.
        offsets, latents, values: the codes, chosen already or to be.
    """

    def __init__(
        self,
        step: SparseStep,
        role: str,
        u: torch.Tensor,
        encoder: _Encoder,
        decoder: torch.Tensor,
        ends: list[int],
        offsets: np.ndarray,
        latents: np.ndarray,
        values: np.ndarray,
    ):
        n, width = u.shape
        self._u, self._encoder, self._decoder, self._ends = _plain(u), encoder, _plain(decoder), np.array(ends)
        self._codes, self._rows = (offsets, latents, values), step._rows
        chunks, real, size = -(-n // self._rows), values.dtype, values.shape
        self._slopes, self._z, self._g = (step._array(f"{role}{name}", size, real) for name in ("slopes", "z", "g"))
        self._tokens = step._array(f"{role}tokens", size, np.int32)
        self.starts = step._array(f"{role}starts", (chunks, len(decoder) + 1), np.int64)
        self.blame = _plain(step._low_array(f"{role}blame", (len(ends), n, width)))
        self.by_bias = step._array(f"{role}by_bias", (chunks, width), real)
        self.squares = np.empty((chunks, len(ends)))

    def choose(self, first: int, last: int, k: int) -> None:
        """Chooses the k largest latents of a chunk's tokens."""
        _offsets, latents, values = self._codes
        places = latents.reshape(-1, k), _bits(values).reshape(-1, k)
        for row, bits in self._encoder.bits(first, last):
            topk.largest(bits, k, row, self._encoder.shift, *places)

    def decode(self, first: int, last: int, bias: np.ndarray, target: np.ndarray, sign: int = 1) -> None:
        """Decodes a chunk, compares it with sign · target [n, d], sorts its codes."""
        chunk, sign = first // self._rows, bias.dtype.type(sign)
        found = self.blame, self._slopes, self.squares[chunk], self.by_bias[chunk]
        step.errors(first, last, *self._codes, self._decoder, bias, target, sign, self._ends, *found)
        step.by_latent(first, last, *self._codes, self._slopes, self.starts[chunk], self._tokens, self._z, self._g)

    def by_latent(self, factor: float) -> tuple[Any, ...]:
        """Returns what `step.gradients` takes of this and a factor of the loss."""
        codes = self.starts, self._tokens, self._z, self._g
        return *codes, self.blame, self._ends, self._u, self._z.dtype.type(factor)


def _aligned(size: int, dtype: Any) -> np.ndarray:
    """Returns an array [size] with anything in it that starts where a line of the cache does; numpy's own do not."""
    return torch.empty(size * np.dtype(dtype).itemsize, dtype=torch.uint8).numpy().view(dtype)


def _bits(values: np.ndarray) -> np.ndarray:
    """Returns the memory of floats as integers of the same size."""
    return values.view(f"i{values.itemsize}")


def _plain(tensor: torch.Tensor) -> np.ndarray:
    """Returns an array of the same memory; bfloat16 becomes int16, as the kernels take it."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
