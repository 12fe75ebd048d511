"""The training step by sparse kernels, for the k-sparse methods on a CPU; see `steps` for the loss."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sae import kernels, selection
from sae.steps import Rows, Step

_ROWS = 512  # tokens in a chunk: their errors and inputs fit into a core's own cache
_PRE_ACTIVATIONS = 3 * 2**18  # how many of them a thread holds at once
_ONEDNN: set[torch.dtype] = set()  # what oneDNN multiplies here
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _ONEDNN.add(torch.float32)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _ONEDNN.add(torch.bfloat16)
_INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


class SparseStep(Step):
    """The step by sparse kernels. Its results do not depend on the number of threads.

    With e the error's gradient by x̂, g_ti = e_t · W_dec[i] the gradient by an active latent and u what stands in front
    of the encoder's gain and shift (which are 1 and -b_dec, or the LayerNorm's):

        dW_dec[i] = Σ_t z_ti e_t,    dW_enc[i] = gain ∘ Σ_t g_ti u_t + shift · Σ_t g_ti,    db_enc[i] = Σ_t g_ti

    over the tokens t on which i is active. A token costs 2·d·F for the encoder's product and 8·k·d for the rest, where
    dense differentiation costs 10·d·F. With `bf16`, u, encoder, decoder, pre-activations and e are rounded to bfloat16
    where they are multiplied: half the memory to gather from.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        sae = self.sae
        self._values = {name: p.detach().numpy() for name, p in self.trained.items()}
        self._gradients = {name: np.zeros_like(value) for name, value in self._values.items()}
        self._adam = {
            f"{m}.{name}": torch.zeros_like(p) for name, p in self.trained.items() for m in ("moment", "square")
        }
        self._updated = {}
        for name, value in self._values.items():
            moments = (self._adam[f"{moment}.{name}"].numpy() for moment in ("moment", "square"))
            self._updated[name] = [a.reshape(len(a), -1) for a in (value, *moments, self._gradients[name])]
        # The folded encoder and the decoder, as they are multiplied.
        low = torch.bfloat16 if self.bf16 else sae.b_dec.dtype
        self._low = {name: torch.empty(value.shape, dtype=low) for name, value in self._of_latents().items()}
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
        kernels.fold(first, last, *self._of_latents().values(), *self._affine(), *low)

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns gain and shift: the encoder sees gain ∘ u + shift."""
        if self.sae.settings.input == "layernorm":
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
                size += kernels.adam(first, last, *self._updated[name], *numbers, normalise)
            return size

        def update_latents(first: int, last: int) -> float:
            size = update(of_latents, first, last)
            self._fold(first, last)
            return size

        of_latents = self._of_latents()
        size = update(self._values.keys() - of_latents, 0, self.sae.settings.width)
        size += sum(self._over_latents(update_latents))
        if not math.isfinite(size):
            self._last["loss"] = math.nan

    @torch.no_grad()
    def gradients(self, raw: torch.Tensor | Rows) -> float:
        """Computes the gradients of all parameters at rows [n, d], as they are before clipping; Σ of their squares."""
        sae, out, value = self.sae, self._gradients, self._values
        width, latents, real = sae.settings.width, sae.settings.latents, out["b_dec"].dtype
        n, prefixes, layernorm = len(raw), len(self.ends), sae.settings.input == "layernorm"
        target = torch.from_numpy(self._array("target", (n, width), real))
        u = self._low_array("u", (n, width)) if self.bf16 or layernorm else target
        mean, scale = sae.mean.numpy(), real.type(sae.scale)
        encoder = _Encoder(u, self._low["W_enc"], self._low["b_enc"])

        def prepare(first: int, last: int) -> None:
            part = raw[first:last].to(target.dtype).numpy()
            kernels.standardise(part, first, mean, scale, target.numpy(), _plain(target if layernorm else u))
            if layernorm:
                u[first:last] = F.layer_norm(target[first:last], (width,), eps=sae.norm.eps)

        if not self._folded:
            self._over_latents(self._fold)
            self._folded = True
        decoder = _plain(self._low["W_dec"])
        done = self._reconstruct("", encoder, decoder, value["b_dec"], target.numpy(), self.ends, prepare)
        power = float(done.squares[-1])
        loss = float(done.squares.sum()) / (n * width * prefixes)
        silent = self.silent.numpy()
        dead = np.flatnonzero(silent > self.dead_after)
        own: dict[str, np.ndarray] = {}  # the auxiliary loss's gradients, of the dead latents
        if len(dead) and self.recipe.auxk and power > 0:
            own, auxiliary = self._revive(dead, encoder, -done.blame[-1].to(target.dtype).numpy(), power)
            loss += auxiliary
        arrays, weights = [out[name] for name in self._of_latents()], (value["W_enc"], value["W_dec"], *self._affine())
        factor = real.type(2 / (n * width * prefixes))
        codes = *done.by_latent(), np.array(self.ends), _plain(u), factor
        blocks = -(-latents // kernels.BLOCK)
        squares, by_input = np.empty(blocks), np.empty((blocks, 2, width), real)

        def differentiate(first: int, last: int) -> None:
            kernels.gradients(first, last, *codes, *arrays)
            if own:
                low, high = np.searchsorted(dead, (first, last))
                for name, gradient in own.items():
                    out[name][dead[low:high]] += gradient[low:high]
            unit_norm = self.recipe.decoder == "unit_norm"
            kernels.finish(first, last, *arrays, *weights, unit_norm, squares, by_input)

        self._over_latents(differentiate)
        by_gain, by_shift = by_input.sum(0)
        out["b_dec"][:] = done.by_bias.sum(0) * factor
        if layernorm:
            out["norm.weight"][:], out["norm.bias"][:] = by_gain, by_shift
        else:
            out["b_dec"] -= by_shift
        silent += n
        silent[(done.starts[:, 1:] > done.starts[:, :-1]).any(0)] = 0
        l0 = int((done.starts[:, -1] - done.starts[:, 0]).sum()) / n
        self._last = {"loss": loss, "error": power / (n * width), "l0": l0}
        small = (np.square(gradient, dtype=np.float64).sum() for name, gradient in out.items() if name[:2] != "W_")
        return float(squares.sum() + sum(small))

    def _reconstruct(
        self,
        role: str,
        encoder: _Encoder,
        decoder: np.ndarray,
        offset: np.ndarray,
        target: np.ndarray,
        ends: list[int],
        prepare: Callable[[int, int], None] | None = None,
        k: int | None = None,
    ) -> _Pass:
        """Encodes all rows and decodes them again, chunk by chunk.

        Args:
            role: keeps the arrays of two passes apart that are in use at once.
            prepare: called with a chunk's first and last row before these are read.
            k: latents per token; None: what the method says.
        """
        n, width, real = len(target), target.shape[1], target.dtype
        if k is None and self.sae.settings.method == "batchtopk":
            offsets, latents, values = self._of_the_batch(encoder, self.sae.settings.k * n, prepare)
        else:
            k = k or self.sae.settings.k
            offsets = np.arange(n + 1) * k
            latents = self._array(f"{role}latents", (n * k,), np.int32)
            values = self._array(f"{role}values", (n * k,), real)
        pairs, size = (offsets, latents, values), values.shape
        slopes, z, g = (self._array(f"{role}{name}", size, real) for name in ("slopes", "z", "g"))
        tokens = self._array(f"{role}tokens", size, np.int32)
        chunks = -(-n // self._rows)
        starts = self._array(f"{role}starts", (chunks, len(decoder) + 1), np.int64)
        by_bias = self._array(f"{role}by_bias", (chunks, width), real)
        blame = self._low_array(f"{role}blame", (len(ends), n, width))
        boundaries = np.array(ends)

        def task(first: int, last: int) -> np.ndarray:
            chunk = first // self._rows
            if k is not None:
                if prepare is not None:
                    prepare(first, last)
                places = latents.reshape(n, k), self._bits(values).reshape(n, k)
                for row, bits in encoder.bits(first, last):
                    selection.largest(bits, k, row, encoder.shift, *places)
            squares = kernels.errors(
                first, last, *pairs, decoder, offset, target, boundaries, _plain(blame), slopes, by_bias[chunk]
            )
            kernels.by_latent(first, last, *pairs, slopes, starts[chunk], tokens, z, g)
            return squares

        squares = np.sum(self._over(n, self._rows, task), axis=0)
        return _Pass(starts, tokens, z, g, blame, squares, by_bias)

    def _of_the_batch(
        self, encoder: _Encoder, wanted: int, prepare: Callable[[int, int], None]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the codes of BatchTopK: the `wanted` largest positive pre-activations of the batch.

        What exceeds a guess is collected, so that the others need no memory; a guess that was too high is halved.
        """
        n, latents = len(encoder.u), len(encoder.bias)
        self._over(n, self._rows, prepare)
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
                found = counts, chosen[-1], self._bits(values[-1])
                selection.above(bits, bits.dtype.type(guess), row, encoder.shift, *found)
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
            self._cut = int(self._bits(np.array([least]))[0]) >> encoder.shift
            self.sae.threshold += (float(least) - self.sae.threshold) * self._rate()
        return np.append(0, np.cumsum(np.bincount(tokens, minlength=n))), chosen, values

    def _revive(
        self, dead: np.ndarray, encoder: _Encoder, rest: np.ndarray, power: float
    ) -> tuple[dict[str, np.ndarray], float]:
        """Returns the auxiliary loss's gradients by what belongs to the dead latents, and that loss."""
        index, ends = torch.from_numpy(dead), [len(dead)]
        own_encoder = _Encoder(encoder.u, encoder.weights[index], encoder.bias[index])
        decoder, nothing = _plain(self._low["W_dec"][index]), np.zeros_like(self._values["b_dec"])
        k = min(max(1, self.sae.settings.width // 2), len(dead))
        done = self._reconstruct("revived ", own_encoder, decoder, nothing, rest, ends, k=k)
        own = {name: np.empty_like(value[dead]) for name, value in self._of_latents().items()}
        arrays = *done.by_latent(), np.array(ends), _plain(encoder.u), rest.dtype.type(2 * self.recipe.auxk / power)
        self._over(len(dead), kernels.BLOCK, kernels.gradients, *arrays, *own.values())
        return own, self.recipe.auxk * float(done.squares[0] / power)

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Returns an array with anything in it. Its memory is used again: new pages cost a tenth of a step."""
        size = math.prod(shape)
        if name not in self._kept or len(self._kept[name]) < size:
            self._kept[name] = np.empty(size, dtype)
        return self._kept[name][:size].reshape(shape)

    def _low_array(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """As `_array`, for what is multiplied."""
        if self.bf16:
            return torch.from_numpy(self._array(name, shape, np.int16)).view(torch.bfloat16)
        return torch.from_numpy(self._array(name, shape, self._values["b_dec"].dtype))

    @staticmethod
    def _bits(values: np.ndarray) -> np.ndarray:
        return values.view(f"i{values.itemsize}")

    def _over_latents(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """As `_over`, for all latents, in pieces of whole blocks."""
        latents = self.sae.settings.latents
        blocks = -(-latents // (kernels.BLOCK * 2 * self._threads))
        return self._over(latents, blocks * kernels.BLOCK, function, *arguments)

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
    """u [n, d], and the folded encoder's weights [F, d] and bias [F], as they are multiplied."""

    u: torch.Tensor
    weights: torch.Tensor
    bias: torch.Tensor

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
        # PyTorch gives float32 to MKL, which is half as fast on AMD's CPUs.
        product = _onednn if self.bias.dtype in _ONEDNN else F.linear
        size = max(32, _PRE_ACTIVATIONS // len(self.bias))
        for row in range(first, last, size):
            pre = product(self.u[row : min(row + size, last)], self.weights, self.bias)
            yield row, pre.view(_INTEGERS[self.bias.dtype]).numpy()


@dataclass(frozen=True)
class _Pass:
    """The codes of a batch, sorted by chunk and latent, and what they miss; see `kernels.by_latent` and `errors`."""

    starts: np.ndarray
    tokens: np.ndarray
    z: np.ndarray
    g: np.ndarray
    blame: torch.Tensor
    squares: np.ndarray
    by_bias: np.ndarray  # [chunks, d]

    def by_latent(self) -> tuple[np.ndarray, ...]:
        """Returns what `kernels.gradients` takes of this."""
        return self.starts, self.tokens, self.z, self.g, _plain(self.blame)


def _onednn(x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weights, bias, "none", [], "")


def _plain(tensor: torch.Tensor) -> np.ndarray:
    """Returns an array of the same memory; bfloat16 becomes int16, as the kernels take it."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
