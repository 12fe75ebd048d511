"""The training step by sparse kernels, for the k-sparse methods on a GPU; see `step` for the loss."""

from __future__ import annotations

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
_TILE = 8192  # numbers of gathered rows that a program holds


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
    return known and config.latents <= 2**17 and config.width <= 2**12 and config.k < 2**11


class GpuStep(Step):
    """The step by sparse kernels, with the formulas of `SparseStep`. Its results are the same in every run.

    A token costs 2·d·F for the encoder's product, a few passes over its F pre-activations, which are still in the cache,
    and 8·k·d for the rest. In bf16, u, encoder, decoder, pre-activations and errors are rounded to bfloat16 where they
    are multiplied.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        model, config = self.model, self.model.config
        self._device, self._real = model.b_dec.device, model.b_dec.dtype
        self._lower = self._real if self.precision == "fp32" else torch.bfloat16
        self._adam = {
            f"{m}.{name}": torch.zeros_like(p) for name, p in self.trained.items() for m in ("moment", "square")
        }
        self._low = {name: torch.empty_like(self.trained[name], dtype=self._lower) for name in ("W_enc", "b_enc", "W_dec")}
        self._betas = self._scalar(self.config.betas)
        self._lr, self._scale = self._scalar(0.0), self._scalar(1.0)
        self._count = torch.zeros((), dtype=torch.int64, device=self._device)
        self._squares = torch.empty(config.latents, dtype=self._real, device=self._device)
        self._last = {name: self._scalar(0.0) for name in ("loss", "error", "l0")}
        self._width, self._size = (triton.next_power_of_2(max(16, size)) for size in (config.width, config.latents))
        self._reviving, self._folded = False, False
        self._known_ends: dict[int, torch.Tensor] = {}
        self._replay = Replay(self._step, self._device)
        self.rows = max(128, _CHUNK // config.latents // 128 * 128)

    def _scalar(self, number: Any) -> torch.Tensor:
        return torch.tensor(number, dtype=self._real, device=self._device)

    def report(self) -> dict[str, float]:
        dead = float((self.silent > self.dead_after).float().mean())
        self._reviving = dead > 0
        return {name: float(value) for name, value in self._last.items()} | {"dead": dead}

    def _moments(self) -> dict[str, torch.Tensor]:
        return self._adam | {"steps": self._count}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        super().restore(state)
        self._folded = False
        self.report()

    def __call__(self, raw: torch.Tensor | Rows, lr: float) -> None:
        self._lr.fill_(lr)
        self._fold()
        self._replay(raw, self._reviving, len(self.ends))
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
        start = self.model.W_dec if self._start is None else self._start
        gpu.update[(self.model.config.latents,)](
            *weights, start, HELD, self.model.b_dec, *self._low.values(), self._scale, self._lr, self._betas, self._count,
            self.model.config.width, WIDTH=self._width, UNIT_NORM=self.unit_norm, HELD=self._start is not None, FOLD=fold,
        )  # fmt: skip

    @torch.no_grad()
    def gradients(self, raw: torch.Tensor | Rows) -> None:
        self._reviving = bool((self.silent > self.dead_after).any())
        self._fold()
        self._differentiate(raw[:].to(self._device))

    @torch.no_grad()
    def _differentiate(self, raw: torch.Tensor) -> None:
        """Computes the gradients at rows [n, d], without a look at the results."""
        if self._device.type == "cpu":  # elsewhere the question would wait for the device: see `report`
            self._reviving = bool((self.silent > self.dead_after).any())
        config, n = self.model.config, len(raw)
        target = torch.empty(n, config.width, dtype=self._real, device=self._device)
        u = target if self._lower == self._real else torch.empty_like(target, dtype=self._lower)
        sizes = {"WIDTH": self._width}
        gpu.standardise[(n,)](raw, self.model.mean, self.model.scale, target, u, config.width, **sizes)
        reviving, dead = self._reviving and self.config.auxk > 0, self.silent > self.dead_after
        k_aux = min(max(1, config.width // 2), config.latents)
        codes, revived = self._choose(u, config.k, k_aux if reviving else 0, dead)

        ends, prefixes = self.ends, len(self.prefixes)
        squares, missed, slopes = self._errors(codes, self.model.b_dec, target, 1, ends)
        power, factor = squares[:, -1].sum(), 2 / (n * config.width * prefixes)
        loss = squares.sum() / (n * config.width * prefixes)
        starts = self._sum(codes, slopes, missed, u, ends, self._scalar_of(factor, power), False)
        fired = starts.diff() > 0
        if revived is not None:
            weight = self.config.auxk / power.clamp_min(1e-30)
            nothing, whole = torch.zeros_like(self.model.b_dec), [config.latents]
            squares, own_missed, slopes = self._errors(revived, nothing, missed[-1], -1, whole)
            loss = loss + weight * squares.sum()
            self._sum(revived, slopes, own_missed, u, whole, 2 * weight, True)
        by = [self.grads[name] for name in ("W_enc", "b_enc", "W_dec")]
        by_input = by[1] @ self.model.W_enc  # by the decoder's bias, as the encoder sees it
        frozen = {"ENCODER": self.config.encoder != "frozen", "DECODER": self.config.decoder != "frozen"}
        gpu.finish[(config.latents,)](
            *by, self.model.W_dec, self.model.b_dec, self._squares, config.width, UNIT_NORM=self.unit_norm, **frozen, **sizes
        )
        torch.sub(missed[0].sum(0, dtype=self._real) * factor, by_input, out=self.grads["b_dec"])
        self.silent += n
        self.silent.masked_fill_(fired, 0)
        found = (("loss", loss), ("error", power / (n * config.width)), ("l0", (starts[-1] - starts[0]) / n))
        for name, value in found:
            self._last[name].copy_(value)

    def _scalar_of(self, number: float, like: torch.Tensor) -> torch.Tensor:
        return torch.full_like(like, number)

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
            sizes = {"BITS": bits, "SIZE": self._size, "num_warps": min(16, max(4, self._size // 1024))}
            if batch:
                codes = self._of_the_batch(pre, keys, sizes)
            for found, masked in ((None if batch else codes, False), (revived, True)):
                if found is not None:
                    out = found.latents.view(n, -1)[part], found.values.view(n, -1)[part]
                    gpu.largest[(len(pre),)](keys, dead, *out, latents, found.k, MASKED=masked, **sizes)
        return codes, revived

    def _room(self, n: int, k: int) -> Codes:
        latents = torch.empty(n * k, dtype=torch.int32, device=self._device)
        return Codes(latents, torch.empty(n * k, dtype=self._real, device=self._device), k)

    def _of_the_batch(self, pre: torch.Tensor, keys: torch.Tensor, sizes: dict[str, int]) -> Codes:
        """Returns the k·n largest pre-activations of a batch, and lets the threshold follow the smallest of them."""
        n, latents = pre.shape
        wanted = self.model.config.k * n
        codes = self._room(n, self.model.config.k)
        best = pre.flatten().topk(wanted, sorted=False).values.relu()
        cut = best.min()
        counts = torch.empty(2, n, dtype=torch.int32, device=self._device)
        bits = cut.view(keys.dtype).long()
        size = {name: size for name, size in sizes.items() if name != "BITS"}
        gpu.count[(n,)](keys, bits, counts, latents, **size)
        equal = counts[1].long()
        larger = counts[0] - equal
        spare = wanted - larger.sum()  # of those equal to the cut, the first
        own = torch.minimum((spare - equal.cumsum(0) + equal).clamp_min(0), equal)
        codes.offsets = F.pad((larger + own).cumsum(0), (1, 0))
        gpu.above[(n,)](keys, bits, own.int(), codes.offsets, codes.latents, codes.values, latents, **sizes)
        tokens = torch.arange(n, dtype=torch.int32, device=self._device)
        codes.tokens = tokens.repeat_interleave(larger + own, output_size=wanted)
        codes.k = None
        least = torch.where(codes.values > 0, codes.values, torch.inf).min()
        weight = (1 / (self._count + 1)).clamp_min(min(1.0, 20 / self.steps))
        threshold = self.model.threshold
        threshold.copy_(torch.where(least.isfinite(), threshold + (least - threshold) * weight, threshold))
        return codes

    def _errors(
        self, codes: Codes, bias: torch.Tensor, target: torch.Tensor, sign: int, ends: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns squares [n, G], missed [G, n, d] and slopes [m] of codes; see `kernels.gpu.errors`."""
        n, width = target.shape
        squares = torch.empty(n, len(ends), dtype=self._real, device=self._device)
        missed = torch.empty(len(ends), n, width, dtype=self._lower, device=self._device)
        slopes = torch.empty_like(codes.values)
        gpu.errors[(n,)](
            codes.offsets, codes.latents, codes.values, self._low["W_dec"], bias, target, sign, self._ends(ends), missed,
            slopes, squares, codes.k or 0, width, COUNT=len(ends), GROUPS=triton.next_power_of_2(len(ends)),
            WIDTH=self._width, AT_ONCE=max(4, min(32, _TILE // self._width)), RAGGED=codes.k is None,
            num_warps=max(4, min(8, self._width // 128)),
        )  # fmt: skip
        return squares, missed, slopes

    def _ends(self, ends: list[int]) -> torch.Tensor:
        """Returns the ends of the prefixes on the device, where they wait for the recording of a graph."""
        if len(ends) not in self._known_ends:
            self._known_ends[len(ends)] = torch.tensor(ends, dtype=torch.int32, device=self._device)
        return self._known_ends[len(ends)]

    def _sum(
        self,
        codes: Codes,
        slopes: torch.Tensor,
        missed: torch.Tensor,
        u: torch.Tensor,
        ends: list[int],
        factor: torch.Tensor,
        more: bool,
    ) -> torch.Tensor:
        """Writes the gradients by the folded encoder and the decoder, or with `more` adds them.

        Returns:
            int64 [F+1], the number of codes above 0 of all latents before each.
        """
        latents, width, m, n = self.model.config.latents, self.model.config.width, len(codes.values), len(u)
        kind = torch.int16 if latents < 2**15 else torch.int32  # half the passes of the sort
        keys = codes.latents.to(kind).masked_fill_(codes.values == 0, latents)
        ordered, order = keys.sort(stable=True)
        limits = torch.arange(latents + 1, dtype=kind, device=self._device)
        starts = torch.searchsorted(ordered, limits)
        counts = (starts.diff() + (_PIECE - 1)) // _PIECE
        behind = counts.cumsum(0)
        pieces = latents + m // _PIECE
        owners = torch.searchsorted(behind, torch.arange(pieces, device=self._device), right=True)
        encoder, decoder = torch.empty(2, pieces, width, dtype=self._real, device=self._device)
        bias = torch.empty(pieces, dtype=self._real, device=self._device)
        sums, first = (encoder, bias, decoder), behind - counts
        gpu.gradients[(pieces,)](
            owners, first, starts, order, codes.tokens, codes.values, slopes, missed, self._ends(ends), u, *sums, latents,
            n, codes.k or 0, width, COUNT=len(ends), WIDTH=self._width, AT_ONCE=max(4, min(16, _TILE // 2 // self._width)),
            PIECE=_PIECE, RAGGED=codes.k is None,
        )  # fmt: skip
        by = (self.grads[name] for name in ("W_enc", "b_enc", "W_dec"))
        gpu.add[(latents,)](counts, first, factor, *sums, *by, width, WIDTH=self._width, MORE=more)
        return starts
