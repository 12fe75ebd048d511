"""The training step by sparse kernels, for the k-sparse methods on a CPU; see `step` for the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sae.kernels import step, topk
from sae.training.passes import Codes, Encoder, Memory, Pass, bits, plain
from sae.training.step import Rows, Step

_ROWS = 512  # tokens in a chunk: their errors and inputs fit into a core's cache


class SparseStep(Step):
    """The step by sparse kernels. Its results do not depend on the number of threads.

    With e the error's gradient by x̂, g_ti = e_t · W_dec[i] the gradient by an active latent and u what stands in front
    of the encoder's gain and shift (which are 1 and -b_dec, or the LayerNorm's):

        dW_dec[i] = Σ_t z_ti e_t,    dW_enc[i] = gain ∘ Σ_t g_ti u_t + shift · Σ_t g_ti,    db_enc[i] = Σ_t g_ti

    over the tokens t on which i is active. A token costs 2·d·F for the encoder's product and 8·k·d for the rest, where
    dense differentiation costs 10·d·F. In bf16, u, encoder, decoder, pre-activations and e are rounded to bfloat16
    where they are multiplied: half the memory to gather from. In int8, u and encoder are rounded to 8 bits for the
    encoder's product alone, each row by its own scale: at half the cost, pre-activations are off by about a hundredth
    of their deviation, and nearly as many of the k largest are found as in bfloat16, whose precision is 8 bits too.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        model = self.model
        self._values = {name: p.detach().numpy() for name, p in self.trained.items()}
        self._grads = {name: grad.numpy() for name, grad in self.grads.items()}
        self._adam = {
            f"{m}.{name}": torch.zeros_like(p) for name, p in self.trained.items() for m in ("moment", "square")
        }
        self._updated = {}
        for name, value in self._values.items():
            moments = (self._adam[f"{moment}.{name}"].numpy() for moment in ("moment", "square"))
            self._updated[name] = [a.reshape(len(a), -1) for a in (value, *moments, self._grads[name])]
        self._int8 = self.precision == "int8"
        # The folded encoder and the decoder, as they are multiplied.
        low = model.b_dec.dtype if self.precision == "fp32" else torch.bfloat16
        kinds = {"W_enc": torch.int8, "b_enc": model.b_dec.dtype, "W_dec": low} if self._int8 else {}
        self._low = {name: torch.empty(v.shape, dtype=kinds.get(name, low)) for name, v in self._of_latents().items()}
        self._scales = np.ones(model.config.latents, self._values["b_dec"].dtype)  # of the folded encoder's rows
        self._folded = False
        self.rows = _ROWS
        self._last: dict[str, float] = {}
        self._cut = 0  # BatchTopK's last threshold, as bits
        self._memory = Memory(low)
        # Each thread computes its products itself: torch's threads and the kernels would wait for each other.
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

    def _of_latents(self) -> dict[str, np.ndarray]:
        """Returns the parameters with a row per latent."""
        return {name: self._values[name] for name in ("W_enc", "b_enc", "W_dec")}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        super().restore(state)
        self._folded = False

    def _fold(self, first: int, last: int) -> None:
        """Renews the folded encoder and decoder rows of these latents."""
        low = (plain(value) for value in self._low.values())
        step.fold(first, last, *self._of_latents().values(), *self._affine(), *low, self._scales)

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns gain and shift: the encoder sees gain ∘ u + shift."""
        if self.model.config.input == "layernorm":
            return self._values["norm.weight"], self._values["norm.bias"]
        return np.ones_like(self._values["b_dec"]), -self._values["b_dec"]

    def __call__(self, raw: torch.Tensor | Rows, lr: float) -> None:
        squares = self.gradients(raw)
        scale = 1.0
        if self.config.clip is not None:
            scale = min(1.0, self.config.clip / (math.sqrt(squares) + 1e-6)) if math.isfinite(squares) else 1.0
        self.count += 1
        keep, keep2 = self.config.betas
        real = self._values["b_dec"].dtype.type
        fix, fix2 = 1 / (1 - keep**self.count), 1 / (1 - keep2**self.count)
        numbers = [real(number) for number in (scale, lr, keep, keep2, fix, fix2)]

        def update(names: Iterable[str], first: int, last: int) -> float:
            size = 0.0
            for name in names:
                normalise = name == "W_dec" and self.unit_norm
                size += step.adam(first, last, *self._updated[name], *numbers, normalise)
            return size

        def update_latents(first: int, last: int) -> float:
            size = update(of_latents, first, last)
            self._hold(first, last)
            self._fold(first, last)
            return size

        of_latents = self._of_latents()
        size = update(self._values.keys() - of_latents, 0, self.model.config.width)
        size += sum(self._over_latents(update_latents))
        if not math.isfinite(size):
            self._last["loss"] = math.nan

    @torch.no_grad()
    def gradients(self, raw: torch.Tensor | Rows) -> float:
        """Computes the gradients of all parameters at rows [n, d], as they are before clipping; Σ of their squares."""
        width, latents, real = self.model.config.width, self.model.config.latents, self._values["b_dec"].dtype
        n, silent, out = len(raw), self.silent.numpy(), self._grads
        if not self._folded:
            self._over_latents(self._fold)
            self._folded = True
        dead = np.flatnonzero(silent > self.dead_after) if self.config.auxk else np.empty(0, np.int64)
        whole, revived = self._encode(raw, dead)

        power, size = float(whole.squares[:, -1].sum()), n * width * len(self.prefixes)
        loss, factor = float(whole.squares.sum()) / size, 2 / size
        arrays, codes = [out[name] for name in self._of_latents()], whole.by_latent(factor)
        weights = self._values["W_enc"], self._values["W_dec"], *self._affine()
        blocks = -(-latents // step.BLOCK)
        squares, by_input = np.empty(blocks), np.empty((blocks, 2, width), real)
        if revived is not None and power > 0:
            loss += self.config.auxk * float(revived.squares.sum()) / power
            own_codes = revived.by_latent(2 * self.config.auxk / power)
            own = [np.empty_like(array[dead]) for array in arrays]

        def differentiate(first: int, last: int) -> None:
            step.gradients(first, last, *codes, *arrays)
            if revived is not None and power > 0:
                low, high = np.searchsorted(dead, (first, last))
                step.gradients(low, high, *own_codes, *own)
                for array, more in zip(arrays, own, strict=True):
                    array[dead[low:high]] += more[low:high]
            if self.config.decoder == "frozen":
                out["W_dec"][first:last] = 0
            step.finish(
                first, last, *arrays, *weights, self.unit_norm, self.config.encoder == "frozen", squares, by_input
            )

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

    def _encode(self, raw: torch.Tensor | Rows, dead: np.ndarray) -> tuple[Pass, Pass | None]:
        """Encodes and decodes rows [n, d]; then, if there are dead latents, encodes and decodes the residual by these.

        It works chunk by chunk, so that gathered rows are still in the cache when they are needed again.
        """
        model, n = self.model, len(raw)
        width, k, real = model.config.width, model.config.k, self._values["b_dec"].dtype
        layernorm, batchtopk = model.config.input == "layernorm", model.config.method == "batchtopk"
        target = self._memory.array("target", (n, width), real)
        exact = self.precision == "fp32"
        u = torch.from_numpy(target) if exact and not layernorm else self._memory.low("u", (n, width))
        mean, scale, bias = model.mean.numpy(), real.type(model.scale), self._values["b_dec"]
        scales = self._memory.array("scales", (n,), real)
        seen = torch.from_numpy(self._memory.array("seen", (n, width), np.int8)) if self._int8 else u
        encoder = Encoder(self._memory, seen, scales, self._low["W_enc"], self._scales, self._low["b_enc"])
        decoder, ends = self._low["W_dec"], self.ends

        def prepare(first: int, last: int) -> None:
            part = raw[first:last].to(model.b_dec.dtype).numpy()
            step.standardise(part, first, mean, scale, target, target if layernorm else plain(u))
            if layernorm:
                u[first:last] = F.layer_norm(torch.from_numpy(target[first:last]), (width,), eps=model.norm.eps)
            if self._int8:
                step.quantise(first, last, plain(u), seen.numpy(), scales)

        if batchtopk:
            self._over(n, self.rows, prepare)
        codes = self._of_the_batch(encoder, k * n) if batchtopk else self._room("", n, k)
        whole = Pass("", self.rows, u, encoder, decoder, ends, codes)
        revived, nothing = None, np.zeros_like(bias)
        if len(dead):
            index = torch.from_numpy(dead)
            few = min(max(1, width // 2), len(dead))
            own = encoder.weights[index], self._scales[dead], encoder.bias[index]
            encoder, codes = Encoder(self._memory, seen, scales, *own), self._room("revived ", n, few)
            revived = Pass("revived ", self.rows, u, encoder, decoder[index], [len(dead)], codes)

        def encode(first: int, last: int) -> None:
            if not batchtopk:
                prepare(first, last)
                whole.choose(first, last, k)
            whole.decode(first, last, bias, target)
            if revived is not None:
                revived.choose(first, last, few)
                revived.decode(first, last, nothing, whole.missed[-1], -1)

        self._over(n, self.rows, encode)
        return whole, revived

    def _room(self, role: str, n: int, k: int) -> Codes:
        """Returns offsets, latents and values of k codes for each of n tokens, yet to be chosen."""
        real = self._values["b_dec"].dtype
        return (
            np.arange(n + 1) * k,
            self._memory.array(f"{role}latents", (n * k,), np.int32),
            self._memory.array(f"{role}values", (n * k,), real),
        )

    def _of_the_batch(self, encoder: Encoder, wanted: int) -> Codes:
        """Returns the codes of BatchTopK: the `wanted` largest positive pre-activations of the batch.

        Only values above a guess are collected, to save memory; if the guess was too high, it is halved.
        """
        n, latents = len(encoder.seen), len(encoder.bias)
        octave = 1 << encoder.mantissa  # halves a float when subtracted from its bits
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
            for row, block in encoder.bits(first, last):
                room = int((block > guess).sum())
                chosen.append(np.empty(room, np.int32))
                values.append(np.empty(room, real))
                found = counts, chosen[-1], bits(values[-1])
                topk.above(block, block.dtype.type(guess), row, encoder.shift, *found)
            return np.concatenate(chosen), np.concatenate(values)

        while True:
            parts = self._over(n, self.rows, collect)
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
            self._cut = int(bits(np.array([least]))[0]) >> encoder.shift
            self.model.threshold.add_((float(least) - self.model.threshold) * self._rate())
        return np.append(0, np.cumsum(np.bincount(tokens, minlength=n))), chosen, values

    def _over_latents(self, function: Callable[[int, int], Any]) -> list[Any]:
        """As `_over`, for all latents, in pieces of whole blocks."""
        latents = self.model.config.latents
        blocks = -(-latents // (step.BLOCK * 2 * self._threads))
        return self._over(latents, blocks * step.BLOCK, function)

    def _over(self, total: int, size: int, function: Callable[[int, int], Any]) -> list[Any]:
        """Returns function(first, last) for the pieces of [0, total), in order, by the threads."""
        return [*self._pool.map(lambda first: function(first, min(first + size, total)), range(0, total, size))]
