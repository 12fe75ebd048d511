"""The training step by sparse kernels, for the k-sparse methods on a GPU; see `step` for the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton

from sae.autoencoder import SAEConfig
from sae.kernels import gpu
from sae.training.replay import Replay
from sae.training.step import HELD, Rows, Step

_CHUNK = 2**24  # pre-activations held at once: in bfloat16 they fit into the cache of a large GPU
_PIECE = 128  # codes of a latent that one program sums
_WARPS, _OF_A_WARP = 16, 1024  # that choose the largest of a row, at most; pre-activations that one takes
_AT_ONCE = 4  # rows that a program gathers at once


@dataclass
class Codes:
    """The codes of a batch, in the order of its tokens; see `kernels.gpu`.

    Attributes:
        latents: int32 [m]. values: [m].
        k: Codes of each token; None where they differ.
        offsets: int64 [n+1], of each token's codes; tokens: int32 [m], the token of each code. Where they differ.
    """

    latents: torch.Tensor
    values: torch.Tensor
    k: int | None
    offsets: torch.Tensor | None = None
    tokens: torch.Tensor | None = None


def trains(config: SAEConfig) -> bool:
    """Returns whether `GpuStep` can train such an SAE: k-sparse, of standardised tokens, not too large a row."""
    known = config.method not in ("relu", "jumprelu") and config.input == "standardised"
    return known and config.latents <= 2**17 and config.width <= 2**12


class GpuStep(Step):
    """The step by sparse kernels, with the formulas of `SparseStep`. Its results are the same in every run.

    A token costs 2·d·F for the encoder's product, passes over its F pre-activations while they are in the cache, and
    8·k·d for the rest. In bf16, u, encoder, decoder, pre-activations and errors are rounded to bfloat16 where they are
    multiplied. Whether latents are dead is known to the host only after a `report`: of those that die later, the ones
    with small pre-activations may have to wait for the next one until AuxK sees them.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        model, config = self.model, self.model.config
        self._device, self._real = model.b_dec.device, model.b_dec.dtype
        self._lower = self._real if self.precision == "fp32" else torch.bfloat16
        self._adam = {
            f"{m}.{name}": torch.zeros_like(p) for name, p in self.trained.items() for m in ("moment", "square")
        }
        of_latents = {name: self.trained[name] for name in ("W_enc", "b_enc", "W_dec")}
        self._low = {name: torch.empty_like(p, dtype=self._lower) for name, p in of_latents.items()}
        self._betas = self._scalar(self.config.betas)
        self._lr, self._scale = self._scalar(0.0), self._scalar(1.0)
        self._count = torch.zeros((), dtype=torch.int64, device=self._device)
        self._squares = torch.empty(config.latents, dtype=self._real, device=self._device)
        self._last = {name: self._scalar(0.0) for name in ("loss", "error", "l0")}
        self._width, self._size = (triton.next_power_of_2(max(16, size)) for size in (config.width, config.latents))
        # Each thread of a program holds its columns of all gathered rows, 16 bytes of each, and sums them by itself.
        self._row = {"WIDTH": self._width, "num_warps": max(1, self._width // 256)}
        self._few, self._folded = 0, False  # of dead latents that are revived
        self._ends = torch.tensor(self.prefixes, dtype=torch.int32, device=self._device)
        self._replay = Replay(self._step, self._device)
        self.rows = max(128, _CHUNK // config.latents // 128 * 128)

    def _scalar(self, number: Any) -> torch.Tensor:
        return torch.tensor(number, dtype=self._real, device=self._device)

    def report(self) -> dict[str, float]:
        dead = self._seek_dead()
        return {name: float(value) for name, value in self._last.items()} | {"dead": dead / len(self.silent)}

    def _seek_dead(self) -> int:
        """Returns the number of dead latents, and decides how many of them are revived from now on."""
        config, dead = self.model.config, int((self.silent > self.dead_after).sum())
        most = min(max(1, config.width // 2), config.latents)
        # On a GPU some more, since others die until the next look; a power of 4, so that there are few graphs.
        self._few = min(most, 4 ** math.ceil(math.log(2 * dead, 4))) if dead and self.config.auxk else 0
        return dead

    def _moments(self) -> dict[str, torch.Tensor]:
        return self._adam | {"steps": self._count}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        super().restore(state)
        self._folded = False
        self.report()

    def __call__(self, raw: torch.Tensor | Rows, lr: float) -> None:
        self._lr.fill_(lr)
        self._fold()
        self._replay(raw, self._few, len(self.ends))
        self.count += 1

    def _fold(self) -> None:
        """Writes the weights as they are multiplied, where no step has done it."""
        if not self._folded:
            self._update(True)
            self._folded = True

    def _step(self, raw: torch.Tensor) -> None:
        self._differentiate(raw)
        if self.config.clip is not None:
            power = self._squares.sum() + self.grads["b_dec"].square().sum()
            scale = (self.config.clip / (power.sqrt() + 1e-6)).clamp(max=1.0)
            self._scale.copy_(torch.where(power.isfinite(), scale, 1.0))
        p, m, v, g = self._adamised("b_dec")
        numbers = self._scale, self._lr, self._betas, self._count
        gpu.update_bias[(1,)](p, m, v, g, *numbers, self.model.config.width, WIDTH=self._width)
        self._update(False)

    def _adamised(self, name: str) -> list[torch.Tensor]:
        return [self.trained[name], self._adam[f"moment.{name}"], self._adam[f"square.{name}"], self.grads[name]]

    def _update(self, fold: bool) -> None:
        weights = [tensor for name in ("W_enc", "b_enc", "W_dec") for tensor in self._adamised(name)]
        start, config = self.model.W_dec if self._start is None else self._start, self.model.config
        gpu.update[(config.latents,)](
            *weights, start, HELD, self.model.b_dec, *self._low.values(), self._scale, self._lr, self._betas,
            self._count, config.width, WIDTH=self._width, UNIT_NORM=self.unit_norm, HELD=self._start is not None,
            FOLD=fold,
        )  # fmt: skip

    @torch.no_grad()
    def gradients(self, raw: torch.Tensor | Rows) -> None:
        self._seek_dead()
        self._fold()
        self._differentiate(raw[:].to(self._device))

    @torch.no_grad()
    def _differentiate(self, raw: torch.Tensor) -> None:
        """Computes the gradients at rows [n, d], without a look at the results."""
        if self._device.type == "cpu":  # elsewhere the question would wait for the device: see `report`
            self._seek_dead()
        config, n = self.model.config, len(raw)
        target = torch.empty(n, config.width, dtype=self._real, device=self._device)
        u = target if self._lower == self._real else torch.empty_like(target, dtype=self._lower)
        sizes = {"WIDTH": self._width}
        gpu.standardise[(n,)](raw, self.model.mean, self.model.scale, target, u, config.width, **sizes)
        codes, revived = self._choose(u, config.k, self._few, self.silent > self.dead_after)

        groups, size = len(self.ends), n * config.width * len(self.prefixes)
        squares, missed, slopes = self._errors(codes, self.model.b_dec, target, 1, groups)
        power, loss, factor = squares[:, -1].sum(), squares.sum() / size, 2 / size
        starts, *pieces = self._pieces(codes, slopes, missed, u, torch.full_like(power, factor))
        fired = starts.diff() > 0
        more = pieces
        if revived is not None:
            weight = self.config.auxk / power.clamp_min(1e-30)
            nothing = torch.zeros_like(self.model.b_dec)
            squares, own_missed, slopes = self._errors(revived, nothing, missed[-1], -1, 1)
            loss = loss + weight * squares.sum()
            more = self._pieces(revived, slopes, own_missed, u, 2 * weight)[1:]
        by = [self.grads[name] for name in ("W_enc", "b_enc", "W_dec")]
        by_folded = torch.empty_like(by[1])
        gpu.finish[(config.latents,)](
            *pieces, *more, *by, by_folded, self.model.W_dec, self.model.b_dec, self._squares, config.width,
            MORE=revived is not None, UNIT_NORM=self.unit_norm, ENCODER=self.config.encoder != "frozen",
            DECODER=self.config.decoder != "frozen", **sizes,
        )  # fmt: skip
        torch.sub(missed[0].sum(0, dtype=self._real) * factor, by_folded @ self.model.W_enc, out=self.grads["b_dec"])
        self.silent += n
        self.silent.masked_fill_(fired, 0)
        found = (("loss", loss), ("error", power / (n * config.width)), ("l0", (starts[-1] - starts[0]) / n))
        for name, value in found:
            self._last[name].copy_(value)

    def _choose(self, u: torch.Tensor, k: int, k_aux: int, dead: torch.Tensor) -> tuple[Codes, Codes | None]:
        """Returns the codes of tokens [n, d], and those of the k_aux largest dead latents; k_aux 0: None."""
        n, latents = len(u), self.model.config.latents
        codes, revived = self._room(n, k), self._room(n, k_aux) if k_aux else None
        batch = self.model.config.method == "batchtopk"
        rows = n if batch else self.rows
        for first in range(0, n, rows):
            part = slice(first, first + rows)
            pre = F.linear(u[part], self._low["W_enc"], self._low["b_enc"])
            bits = 8 * pre.element_size()
            keys = pre.view({16: torch.int16, 32: torch.int32, 64: torch.int64}[bits])
            warps = min(_WARPS, max(1, self._size // _OF_A_WARP))
            sizes = {"BITS": bits, "SIZE": self._size, "CHUNK": min(self._size, 256 * warps), "num_warps": warps}
            if batch:
                codes = self._of_the_batch(keys, sizes)
            for found, masked in ((None if batch else codes, False), (revived, True)):
                if found is not None:
                    out = found.latents.view(n, -1)[part], found.values.view(n, -1)[part]
                    gpu.largest[(len(pre),)](keys, dead, *out, latents, found.k, MASKED=masked, **sizes)
        return codes, revived

    def _room(self, n: int, k: int) -> Codes:
        latents = torch.empty(n * k, dtype=torch.int32, device=self._device)
        return Codes(latents, torch.empty(n * k, dtype=self._real, device=self._device), k)

    def _of_the_batch(self, keys: torch.Tensor, sizes: dict[str, int]) -> Codes:
        """Returns the k·n largest pre-activations of a batch, and lets the threshold follow the smallest of them."""
        n, latents = keys.shape
        wanted = self.model.config.k * n
        codes = self._room(n, self.model.config.k)
        # By their bits, as the kernels compare them: NaN is the largest.
        cut = keys.flatten().topk(wanted, sorted=False).values.min().clamp_min(0).long()
        counts = torch.empty(2, n, dtype=torch.int32, device=self._device)
        chunk = {name: sizes[name] for name in ("BITS", "CHUNK", "num_warps")}
        gpu.count[(n,)](keys, cut, counts, latents, SIZE=sizes["SIZE"], num_warps=sizes["num_warps"])
        equal = counts[1].long()
        larger = counts[0] - equal
        spare = wanted - larger.sum()  # of those equal to the cut, the first
        own = torch.minimum((spare - equal.cumsum(0) + equal).clamp_min(0), equal)
        codes.offsets = F.pad((larger + own).cumsum(0), (1, 0))
        gpu.above[(n,)](keys, cut, own.int(), codes.offsets, codes.latents, codes.values, latents, **chunk)
        tokens = torch.arange(n, dtype=torch.int32, device=self._device)
        codes.tokens = tokens.repeat_interleave(larger + own, output_size=wanted)
        codes.k = None
        least = torch.where(codes.values > 0, codes.values, torch.inf).min()
        weight = (1 / (self._count + 1)).clamp_min(min(1.0, 20 / self.steps))
        threshold = self.model.threshold
        threshold.copy_(torch.where(least.isfinite(), threshold + (least - threshold) * weight, threshold))
        return codes

    def _errors(
        self, codes: Codes, bias: torch.Tensor, target: torch.Tensor, sign: int, groups: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns squares [n, G], missed [G, n, d] and slopes [m] for the last G prefixes; see `kernels.gpu.errors`."""
        n, width = target.shape
        squares = torch.empty(n, groups, dtype=self._real, device=self._device)
        missed = torch.empty(groups, n, width, dtype=self._lower, device=self._device)
        slopes = torch.empty_like(codes.values)
        gpu.errors[(n,)](
            codes.offsets, codes.latents, codes.values, self._low["W_dec"], bias, target, sign, self._ends[-groups:],
            missed, slopes, squares, codes.k or 0, width, COUNT=groups, GROUPS=triton.next_power_of_2(groups),
            RAGGED=codes.k is None, AT_ONCE=_AT_ONCE, **self._row,
        )  # fmt: skip
        return squares, missed, slopes

    def _pieces(
        self, codes: Codes, slopes: torch.Tensor, missed: torch.Tensor, u: torch.Tensor, factor: torch.Tensor
    ) -> list[torch.Tensor]:
        """Returns the number of codes above 0 of all latents before each, int64 [F+1], and the sums for `finish`."""
        latents, width, m, n = self.model.config.latents, self.model.config.width, len(codes.values), len(u)
        kind = torch.int16 if latents < 2**15 else torch.int32  # half the passes of the sort
        keys = codes.latents.to(kind).masked_fill_(codes.values == 0, latents)
        ordered, order = keys.sort(stable=True)
        starts = torch.searchsorted(ordered, torch.arange(latents + 1, dtype=kind, device=self._device))
        counts = (starts.diff() + (_PIECE - 1)) // _PIECE
        behind = counts.cumsum(0)
        pieces, first = latents + m // _PIECE, behind - counts
        owners = torch.searchsorted(behind, torch.arange(pieces, device=self._device), right=True)
        encoder, decoder = torch.empty(2, pieces, width, dtype=self._real, device=self._device)
        bias = torch.empty(pieces, dtype=self._real, device=self._device)
        gpu.gradients[(pieces,)](
            owners, first, starts, order, codes.tokens, codes.values, slopes, missed, self._ends[-len(missed):], u,
            encoder, bias, decoder, latents, n, codes.k or 0, width, COUNT=len(missed), PIECE=_PIECE,
            RAGGED=codes.k is None, AT_ONCE=_AT_ONCE, **self._row,
        )  # fmt: skip
        return [starts, first, counts, factor, encoder, bias, decoder]
