"""The training step by sparse kernels, for the k-sparse methods on a CPU; see `steps` for the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sae import kernels
from sae.steps import Step

_ROWS = 512  # tokens in a chunk: their errors and inputs fit into a core's own cache
_PRE_ACTIVATIONS = 2**21  # how many of them a thread holds at once, at most
_LATENTS = 256  # per task of a thread
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
    dense differentiation costs 10·d·F. With `bf16` that product takes and gives bfloat16; all else stays float32.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        sae = self.sae
        self._values = {name: p.detach().numpy() for name, p in self.trained.items()}
        self._gradients = {name: np.zeros_like(value) for name, value in self._values.items()}
        self._adam = {
            f"{m}.{name}": torch.zeros_like(p) for name, p in self.trained.items() for m in ("moment", "square")
        }
        self._rows = max(32, min(_ROWS, _PRE_ACTIVATIONS // sae.settings.latents))
        self._low = torch.empty_like(sae.W_enc, dtype=torch.bfloat16 if self.bf16 else None, requires_grad=False)
        self._last: dict[str, float] = {}
        self._cut = 0  # BatchTopK's last threshold, as bits
        self._kept: dict[str, np.ndarray] = {}
        # Each thread runs its own products: torch's threads would wait for the kernels, and the kernels for them.
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
        torch.set_num_threads(1)

    def close(self) -> None:
        self._pool.shutdown()
        torch.set_num_threads(self._threads)

    def report(self) -> dict[str, float]:
        return self._last | {"dead": np.count_nonzero(self.silent.numpy() > self.dead_after) / len(self.silent)}

    def _moments(self) -> dict[str, torch.Tensor]:
        return self._adam

    def __call__(self, raw: torch.Tensor, lr: float) -> None:
        squares = self.gradients(raw)
        scale = 1.0
        if self.recipe.clip is not None:
            scale = min(1.0, self.recipe.clip / (math.sqrt(squares) + 1e-6)) if math.isfinite(squares) else 1.0
        self.count += 1
        size = 0.0
        for name, value in self._values.items():
            normalise = name == "W_dec" and self.recipe.decoder == "unit_norm"
            moment, square = (self._adam[f"{m}.{name}"].numpy() for m in ("moment", "square"))
            arrays = [a.reshape(-1, value.shape[-1]) for a in (value, moment, square, self._gradients[name])]
            first, second = self.recipe.betas
            numbers = (scale, lr, first, second, 1 / (1 - first**self.count), 1 / (1 - second**self.count))
            real = value.dtype.type
            size += sum(self._over(len(arrays[0]), _LATENTS, kernels.adam, *arrays, *map(real, numbers), normalise))
        if not math.isfinite(size):
            self._last["loss"] = math.nan

    @torch.no_grad()
    def gradients(self, raw: torch.Tensor) -> float:
        """Computes the gradients of all parameters at rows [n, d], as they are before clipping; Σ of their squares."""
        sae, out, value = self.sae, self._gradients, self._values
        width, unit_norm = sae.settings.width, self.recipe.decoder == "unit_norm"
        n, prefixes = len(raw), len(self.ends)
        target = torch.from_numpy(self._array("target", (n, width), out["b_dec"].dtype))
        if sae.settings.input == "layernorm":
            u = torch.from_numpy(self._array("u", (n, width), out["b_dec"].dtype))
            gain, shift = value["norm.weight"], value["norm.bias"]
            weights = sae.W_enc * sae.norm.weight
        else:
            u, gain, shift, weights = target, np.ones_like(value["b_dec"]), -value["b_dec"], sae.W_enc.detach()

        def prepare(first: int, last: int) -> None:
            part = target[first:last]
            torch.mul(part.copy_(raw[first:last]).sub_(sae.mean), sae.scale, out=part)
            if u is not target:
                u[first:last] = F.layer_norm(part, (width,), eps=sae.norm.eps)

        if self.bf16:
            weights = self._low.copy_(weights)
        bias = sae.b_enc + sae.W_enc @ torch.from_numpy(shift)
        encoder = _Encoder(u, weights, bias.to(weights.dtype))
        done = self._reconstruct("", encoder, value["W_dec"], value["b_dec"], target.numpy(), self.ends, prepare)
        factor = 2 / (n * width * prefixes)
        self._by_latent(done, self.ends, u.numpy(), factor, out)
        loss = float(done.squares.sum()) / (n * width * prefixes)
        power = float(done.squares[-1])
        dead = np.flatnonzero(self.silent.numpy() > self.dead_after)
        if len(dead) and self.recipe.auxk and power > 0:
            loss += self.recipe.auxk * self._revive(dead, encoder, -done.blame[-1], power, out)
        self.silent += n
        self.silent[torch.from_numpy((done.starts[:, 1:] > done.starts[:, :-1]).any(0))] = 0

        out["b_dec"][:] = done.by_bias.sum(0) * out["b_dec"].dtype.type(factor)
        # By torch: numpy's threads would go on spinning after a product, on the cores that the kernels need.
        by_shift = (torch.from_numpy(out["b_enc"]) @ sae.W_enc).numpy()
        if sae.settings.input == "layernorm":
            out["norm.bias"][:] = by_shift
            out["norm.weight"][:] = np.einsum("ij,ij->j", value["W_enc"], out["W_enc"])
        else:
            out["b_dec"] -= by_shift
        arrays = (gain, shift, out["b_enc"], out["W_enc"], out["W_dec"], value["W_dec"], unit_norm)
        total = sum(self._over(sae.settings.latents, _LATENTS, kernels.finish, *arrays))
        small = [gradient for name, gradient in out.items() if name not in ("W_enc", "W_dec")]
        l0 = int((done.starts[:, -1] - done.starts[:, 0]).sum()) / n
        self._last = {"loss": loss, "error": power / (n * width), "l0": l0}
        return total + float(sum(np.square(gradient, dtype=np.float64).sum() for gradient in small))

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
        blame = self._array(f"{role}blame", (len(ends), n, width), real)
        boundaries = np.array(ends)

        def task(first: int, last: int) -> np.ndarray:
            chunk = first // self._rows
            if k is not None:
                if prepare is not None:
                    prepare(first, last)
                places = latents.reshape(n, k), self._bits(values).reshape(n, k)
                kernels.largest(encoder.bits(first, last), k, first, encoder.shift, *places)
            squares = kernels.errors(
                first, last, *pairs, decoder, offset, target, boundaries, blame, slopes, by_bias[chunk]
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
            head = encoder.bits(0, min(n, self._rows)).ravel()
            place = max(0, len(head) - 1 - int(1.5 * wanted / (n * latents) * len(head)))
            guess = max(0, int(np.partition(head, place)[place]))
        counts = np.zeros(n, np.int64)
        real = self._values["b_dec"].dtype

        def collect(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
            bits = encoder.bits(first, last)
            room = int((bits > guess).sum())
            found = np.empty(room, np.int32), np.empty(room, real)
            kernels.above(bits, bits.dtype.type(guess), first, encoder.shift, counts, found[0], self._bits(found[1]))
            return found

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

    def _by_latent(
        self, done: _Pass, ends: list[int], u: np.ndarray, factor: float, out: dict[str, np.ndarray]
    ) -> None:
        """Writes the gradients of decoder, folded encoder and encoder bias into `out`."""
        arrays = (done.starts, done.tokens, done.z, done.g, done.blame, np.array(ends), u, u.dtype.type(factor))
        arrays += out["W_dec"], out["W_enc"], out["b_enc"]
        self._over(len(out["b_enc"]), _LATENTS, kernels.gradients, *arrays)

    def _revive(
        self, dead: np.ndarray, encoder: _Encoder, rest: np.ndarray, power: float, out: dict[str, np.ndarray]
    ) -> float:
        """Adds the auxiliary loss's gradients to those of the dead latents; returns that loss."""
        index = torch.from_numpy(dead)
        own_encoder = _Encoder(encoder.u, encoder.weights[index], encoder.bias[index])
        k = min(max(1, self.sae.settings.width // 2), len(dead))
        nothing = np.zeros_like(out["b_dec"])
        done = self._reconstruct("revived ", own_encoder, self._values["W_dec"][dead], nothing, rest, [len(dead)], k=k)
        own = {name: np.empty_like(out[name][dead]) for name in ("W_dec", "W_enc", "b_enc")}
        self._by_latent(done, [len(dead)], encoder.u.numpy(), 2 * self.recipe.auxk / power, own)
        for name, gradient in own.items():
            out[name][dead] += gradient
        return float(done.squares[0] / power)

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Returns an array with anything in it. Its memory is used again: new pages cost a tenth of a step."""
        size = math.prod(shape)
        if name not in self._kept or len(self._kept[name]) < size:
            self._kept[name] = np.empty(size, dtype)
        return self._kept[name][:size].reshape(shape)

    @staticmethod
    def _bits(values: np.ndarray) -> np.ndarray:
        return values.view(f"i{values.itemsize}")

    def _over(self, total: int, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Returns function(first, last, *arguments) for the pieces of [0, total), in order, by the threads."""
        run = map if self._threads == 1 or total <= size else self._pool.map
        return list(run(lambda first: function(first, min(first + size, total), *arguments), range(0, total, size)))


@dataclass(frozen=True)
class _Encoder:
    """u [n, d], and the folded encoder's weights [F, d] and bias [F] in the precision of the product."""

    u: torch.Tensor
    weights: torch.Tensor
    bias: torch.Tensor

    @property
    def mantissa(self) -> int:
        """How many of a pre-activation's bits follow its exponent."""
        return {torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}[self.bias.dtype]

    @property
    def shift(self) -> int:
        """By how many bits u's numbers are longer than the product's."""
        return 8 * (self.u.element_size() - self.bias.element_size())

    def bits(self, first: int, last: int) -> np.ndarray:
        """Returns the pre-activations of these rows, [last - first, F], as integers with the same bits."""
        part = self.u[first:last].to(self.bias.dtype)
        # PyTorch gives float32 to MKL, which is half as fast on AMD's CPUs.
        product = _onednn if self.bias.dtype in _ONEDNN else F.linear
        return product(part, self.weights, self.bias).view(_INTEGERS[self.bias.dtype]).numpy()


@dataclass(frozen=True)
class _Pass:
    """The codes of a batch, sorted by chunk and latent, and what they miss; see `kernels.by_latent` and `errors`."""

    starts: np.ndarray
    tokens: np.ndarray
    z: np.ndarray
    g: np.ndarray
    blame: np.ndarray
    squares: np.ndarray
    by_bias: np.ndarray  # [chunks, d]


def _onednn(x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weights, bias, "none", [], "")
