"""One step of training: the gradients of the loss, Adam's update, which latents are dead. Two ways to the same numbers.

`SparseStep` is for the k-sparse methods on a CPU: only the active latents of a token are decoded and differentiated, by
the kernels, without autograd. `AutogradStep` is torch's own differentiation, for every method and device. Both take the
rows of a batch in chunks, so that no [batch, F] matrix is ever held whole.

The loss is the mean squared error over tokens and dimensions plus `auxk` times the auxiliary loss of Gao et al. (2024,
arXiv 2406.04093): the k_aux = min(d/2, dead) largest *dead* latents reconstruct the residual, detached, without the
decoder's bias, relative to the residual's sum of squares. Where the methods (sources: see `SparseAutoencoder`) differ:

    topk         the k largest latents of each token
    batchtopk    the k·n largest latents of the n tokens of a batch; `threshold` follows the smallest of them
    matryoshka   topk; the error is the mean over prefixes of the dictionary, each of which reconstructs on its own
    relu         plus c · mean over tokens of Σ z_i ‖W_dec[i]‖
    jumprelu     plus c · L0; by the threshold the step function has the slope of a rectangle, see `_Jump`

relu and jumprelu start with k latents active per token in the first batch, and c is adapted so that L0 stays at k: it
grows while L0 is above and shrinks while it is below.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from sae.autoencoder import SparseAutoencoder

try:
    from sae import kernels
except ImportError:  # no numba for this machine or Python: the same numbers, slower
    kernels = None

PREFIXES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of a Matryoshka dictionary
_CPU_CHUNK, _GPU_CHUNK = 2**20, 2**23  # how many pre-activations a thread, or a GPU, holds at once
_LATENTS = 128  # per task of a thread
_BANDWIDTH = 0.1  # of JumpReLU's slope, where E‖x̃‖² = d
_PENALTY_START, _PENALTY_RATE = 3e-3, 0.02  # c, and how fast log c follows L0


@dataclass(frozen=True)
class Recipe:
    """How an SAE is trained; the defaults are the field's. Fractions are of the run's tokens or steps."""

    input: str = "standardised"  # or layernorm: see SparseAutoencoder
    decoder: str = "unit_norm"  # rows kept at norm 1; start: normalised at the start only
    whole_images: bool = False  # a batch counts images and keeps their tokens together
    lr: float | None = None  # of Adam; None: see `training.default_lr`
    lr_per_epoch: float = 1.0  # the learning rate is multiplied by this after each epoch
    warmup: float = 0.05  # linear from 0
    decay: float = 0.2  # linear to 0, at the end
    clip: float | None = 1.0  # the gradient's norm
    auxk: float = 1 / 32  # weight of the auxiliary loss that revives dead latents; 0: none
    dead_after: float = 0.01  # a latent is dead once it has been silent for this fraction of the run's tokens


class Step(ABC):
    """What both ways share. Calling it with rows [n, d] in the units of x and a learning rate does one step.

    Args:
        sae: trained in place.
        dead_after: tokens.
        steps: how many there will be.
        bf16: products in bf16; weights stay as they are.
    """

    def __init__(self, sae: SparseAutoencoder, recipe: Recipe, dead_after: float, steps: int, bf16: bool):
        self.sae, self.recipe, self.dead_after, self.steps, self.bf16 = sae, recipe, dead_after, steps, bf16
        self.count = 0  # of steps done
        latents, method = sae.settings.latents, sae.settings.method
        shares = PREFIXES if method == "matryoshka" else (1,)
        self.ends = sorted({max(1, round(share * latents)) for share in shares})
        self.trained = {name: p for name, p in sae.named_parameters() if p.requires_grad}
        self.silent = torch.zeros(latents, dtype=torch.int64, device=sae.b_dec.device)  # tokens since it last fired

    @abstractmethod
    def __call__(self, raw: torch.Tensor, lr: float) -> None: ...

    @abstractmethod
    def report(self) -> dict[str, float]:
        """Returns the last step's loss, error (mean square, space of reconstruction), l0, and the share now dead."""

    @abstractmethod
    def _moments(self) -> dict[str, torch.Tensor]:
        """Returns Adam's state, to be changed in place."""

    def state(self) -> dict[str, torch.Tensor]:
        """Returns all that the next step depends on, on the CPU: a copy of nothing that is there already."""
        own = {"silent": self.silent, "count": torch.tensor(self.count)}
        return {name: value.detach().cpu() for name, value in (self.sae.state_dict() | self._moments() | own).items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Goes on from what `state` returned."""
        self.count = int(state["count"])
        with torch.no_grad():
            for name, value in (self.sae.state_dict() | self._moments() | {"silent": self.silent}).items():
                value.copy_(state[name])

    def close(self) -> None:  # noqa: B027
        """Gives threads back, where there are any."""

    def _rate(self) -> float:
        """Returns this step's weight in a running mean over about the last 20th of the run's steps."""
        return max(1 / (self.count + 1), min(1.0, 20 / self.steps))


def make(sae: SparseAutoencoder, *arguments: Any) -> Step:
    """Returns the fastest step for this SAE where it is: see Step for the arguments."""
    sparse = kernels is not None and sae.settings.method in ("topk", "batchtopk", "matryoshka")
    return (SparseStep if sparse and sae.b_dec.device.type == "cpu" else AutogradStep)(sae, *arguments)


class SparseStep(Step):
    """The step by sparse kernels. Its results do not depend on the number of threads.

    With e the error's gradient by x̂, g_ti = e_t · W_dec[i] the gradient by an active latent and u what stands in front
    of the encoder's gain and shift (which are 1 and -b_dec, or the LayerNorm's):

        dW_dec[i] = Σ_t z_ti e_t,    dW_enc[i] = gain ∘ Σ_t g_ti u_t + shift · Σ_t g_ti,    db_enc[i] = Σ_t g_ti

    over the tokens t on which i is active. A token costs 2·d·F for the encoder's product and 8·k·d for the rest, where
    dense differentiation costs 10·d·F.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        sae = self.sae
        self._values = {name: p.detach().numpy() for name, p in self.trained.items()}
        self._gradients = {name: np.zeros_like(value) for name, value in self._values.items()}
        self._adam = {
            f"{m}.{name}": torch.zeros_like(p) for name, p in self.trained.items() for m in ("moment", "square")
        }
        self._integer = np.dtype(f"i{sae.b_dec.element_size()}")
        self._rows = max(32, min(512, _CPU_CHUNK // sae.settings.latents))
        self._last: dict[str, float] = {}
        self._cut = 0.0  # BatchTopK's last threshold
        self._kept: dict[str, np.ndarray] = {}
        # Each thread runs its own products: torch's threads would wait for the kernels, and the kernels for them.
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads)
        self._buffers: SimpleQueue[torch.Tensor] = SimpleQueue()
        for _ in range(self._threads):
            self._buffers.put(torch.empty(self._rows, sae.settings.latents, dtype=sae.b_dec.dtype))
        torch.set_num_threads(1)

    def close(self) -> None:
        self._pool.shutdown()
        torch.set_num_threads(self._threads)

    def report(self) -> dict[str, float]:
        return self._last | {"dead": float((self.silent > self.dead_after).double().mean())}

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
            numbers = (scale, lr, 1 / (1 - 0.9**self.count), 1 / (1 - 0.999**self.count))
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
        torch.mul(target.copy_(raw).sub_(sae.mean), sae.scale, out=target)
        if sae.settings.input == "layernorm":
            u = torch.nn.functional.layer_norm(target, (width,), eps=sae.norm.eps)
            gain, shift = value["norm.weight"], value["norm.bias"]
            weights = sae.W_enc * sae.norm.weight
        else:
            u, gain, shift, weights = target, np.ones_like(value["b_dec"]), -value["b_dec"], sae.W_enc.detach()
        bias = sae.b_enc + sae.W_enc @ torch.from_numpy(shift)

        encoder = (u, weights, bias)
        pooled = sae.settings.method == "batchtopk"
        codes, blame, squares, l0 = self._reconstruct(
            encoder, sae.settings.k, value["W_dec"], value["b_dec"], target.numpy(), self.ends, pooled
        )
        factor = 2 / (n * width * prefixes)
        self._by_latent(codes, value["W_dec"], blame, self.ends, u.numpy(), factor, out)
        error = squares[-1] / (n * width)
        loss = float(squares.sum()) / (n * width * prefixes)

        dead = np.flatnonzero((self.silent > self.dead_after).numpy())
        fired = torch.from_numpy(np.diff(codes.starts) > 0)
        if len(dead) and self.recipe.auxk and squares[-1] > 0:
            loss += self.recipe.auxk * self._revive(dead, encoder, -blame[-1], squares[-1], out)
        self.silent += n
        self.silent[fired] = 0

        out["b_dec"][:] = blame[0].sum(0) * out["b_dec"].dtype.type(factor)
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
        self._last = {"loss": loss, "error": float(error), "l0": l0}
        return total + float(sum(np.square(gradient, dtype=np.float64).sum() for gradient in small))

    def _reconstruct(
        self,
        encoder: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        k: int,
        decoder: np.ndarray,
        offset: np.ndarray,
        target: np.ndarray,
        ends: list[int],
        pooled: bool = False,
    ) -> tuple[_Codes, np.ndarray, np.ndarray, float]:
        """Returns the codes of all rows, what `kernels.errors` gives (blame [G, n, d], squares [G]), and the L0.

        Args:
            encoder: u [n, d] and the folded encoder's weights [F, d] and bias [F].
            k: latents per token; on average over the batch where `pooled`.
        """
        n, real = len(target), target.dtype
        role = "" if decoder is self._values["W_dec"] else "revived "  # both are in use at once
        blame = self._array(f"{role}blame", (len(ends), *target.shape), real)
        last = (decoder, offset, target, np.array(ends), blame)
        if pooled:
            codes = self._of_the_batch(encoder, k * n)
            squares = self._over(n, self._rows, kernels.errors, *codes.pairs, *last)
        else:
            codes = self._codes(
                role,
                np.arange(n + 1) * k,
                self._array(f"{role}latents", (n * k,), np.int32),
                self._array(f"{role}values", (n * k,), real),
                len(decoder),
            )
            pairs = [part.reshape(n, k) for part in codes.pairs[1:]]

            def task(first: int, end: int) -> np.ndarray:
                self._encode(
                    encoder, first, end, lambda pre: kernels.largest(pre, pre.view(self._integer), k, first, *pairs)
                )
                if self.bf16:
                    kernels.exact(first, end, *codes.pairs, *(part.numpy() for part in encoder))
                return kernels.errors(first, end, *codes.pairs, *last)

            squares = self._over(n, self._rows, task)
        kernels.by_latent(*codes.pairs, codes.starts, codes.tokens, codes.z)
        return codes, blame, np.sum(squares, axis=0), codes.starts[-1] / n

    def _encode(self, encoder: tuple[torch.Tensor, ...], first: int, end: int, use: Callable[[np.ndarray], Any]) -> Any:
        """Returns what `use` makes of the pre-activations [end - first, F] of these rows, whose memory is reused."""
        u, weights, bias = encoder
        buffer = self._buffers.get()
        try:
            pre = buffer.view(-1)[: (end - first) * len(bias)].view(end - first, len(bias))
            if self.bf16:
                pre.copy_(u[first:end].bfloat16() @ weights.T.bfloat16()).add_(bias)
            else:
                torch.addmm(bias, u[first:end], weights.T, out=pre)
            return use(pre.numpy())
        finally:
            self._buffers.put(buffer)

    def _of_the_batch(self, encoder: tuple[torch.Tensor, ...], wanted: int) -> _Codes:
        """Returns the codes of BatchTopK: the `wanted` largest positive pre-activations of the batch.

        What exceeds a guess is collected, so that the others need no memory; a guess that was too high is halved.
        """
        n, latents = len(encoder[0]), len(encoder[2])
        share = wanted / (n * latents)
        head = min(n, self._rows)
        first_guess = self._encode(encoder, 0, head, lambda pre: np.quantile(pre, 1 - min(1.0, 1.5 * share)))
        guess = encoder[0].numpy().dtype.type(max(0.0, 0.7 * self._cut or first_guess))
        counts = np.zeros(n, np.int64)

        def collect(first: int, pre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            room = int((pre > guess).sum())
            found = np.empty(room, np.int32), np.empty(room, pre.dtype)
            kernels.above(pre, guess, first, counts, *found)
            return found

        while True:
            parts = self._over(
                n, self._rows, lambda first, end: self._encode(encoder, first, end, lambda pre: collect(first, pre))
            )
            if guess == 0 or counts.sum() >= wanted:
                break
            guess = guess / 2 if guess > 1e-3 else guess * 0
        chosen, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        tokens = np.repeat(np.arange(n), counts)
        if len(values) > wanted:
            cut = np.partition(values, len(values) - wanted)[len(values) - wanted]
            spare = wanted - int((values > cut).sum())  # of those equal to the cut, the first
            keep = values > cut
            keep[np.flatnonzero(values == cut)[:spare]] = True
            tokens, chosen, values = tokens[keep], chosen[keep], values[keep]
        offsets = np.append(0, np.cumsum(np.bincount(tokens, minlength=n)))
        codes = self._codes("", offsets, chosen, values, latents)
        if self.bf16:
            self._over(n, self._rows, kernels.exact, *codes.pairs, *(part.numpy() for part in encoder))
        if len(values):
            self._cut = float(values.min())
            self.sae.threshold += (self._cut - self.sae.threshold) * self._rate()
        return codes

    def _by_latent(
        self,
        codes: _Codes,
        decoder: np.ndarray,
        blame: np.ndarray,
        ends: list[int],
        u: np.ndarray,
        factor: float,
        out: dict[str, np.ndarray],
    ) -> None:
        """Writes the gradients of decoder, folded encoder and encoder bias into `out`."""
        arrays = (codes.starts, codes.tokens, codes.z, decoder, blame, np.array(ends), u, u.dtype.type(factor))
        self._over(len(decoder), _LATENTS, kernels.gradients, *arrays, out["W_dec"], out["W_enc"], out["b_enc"])

    def _revive(
        self,
        dead: np.ndarray,
        encoder: tuple[torch.Tensor, ...],
        rest: np.ndarray,
        power: float,
        out: dict[str, np.ndarray],
    ) -> float:
        """Adds the auxiliary loss's gradients to those of the dead latents; returns that loss."""
        u, weights, bias = encoder
        index = torch.from_numpy(dead)
        decoder, width = self._values["W_dec"][dead], self.sae.settings.width
        k = min(max(1, width // 2), len(dead))
        codes, blame, squares, _ = self._reconstruct(
            (u, weights[index], bias[index]), k, decoder, np.zeros_like(out["b_dec"]), rest, [len(dead)]
        )
        own = {name: np.empty_like(out[name][dead]) for name in ("W_dec", "W_enc", "b_enc")}
        self._by_latent(codes, decoder, blame, [len(dead)], u.numpy(), 2 * self.recipe.auxk / power, own)
        for name, gradient in own.items():
            out[name][dead] += gradient
        return float(squares[0] / power)

    def _codes(self, role: str, offsets: np.ndarray, latents: np.ndarray, values: np.ndarray, size: int) -> _Codes:
        tokens = self._array(f"{role}tokens", values.shape, np.int32)
        return _Codes(
            (offsets, latents, values),
            np.empty(size + 1, np.int64),
            tokens,
            self._array(f"{role}z", values.shape, values.dtype),
        )

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Returns an array with anything in it. Its memory is used again: new pages cost a tenth of a step."""
        size = math.prod(shape)
        if name not in self._kept or len(self._kept[name]) < size:
            self._kept[name] = np.empty(size, dtype)
        return self._kept[name][:size].reshape(shape)

    def _over(self, total: int, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Returns function(first, last, *arguments) for the pieces of [0, total), in order, by the threads."""
        firsts: Iterable[int] = range(0, total, size)
        run = map if self._threads == 1 else self._pool.map
        return list(run(lambda first: function(first, min(first + size, total), *arguments), firsts))


@dataclass(frozen=True)
class _Codes:
    """The active latents of a batch, by token and by latent; see `kernels`."""

    pairs: tuple[np.ndarray, np.ndarray, np.ndarray]  # offsets, latents, values
    starts: np.ndarray
    tokens: np.ndarray
    z: np.ndarray


class AutogradStep(Step):
    """The step by torch's own differentiation: every method, every device.

    On CUDA nothing waits for the host: from the fourth full batch on, the whole step is one CUDA graph, replayed.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        sae = self.sae
        self.device = sae.b_dec.device
        cuda = self.device.type == "cuda"
        self._chunk = max(1, (_GPU_CHUNK if cuda else _CPU_CHUNK) // sae.settings.latents)
        # Numbers that change from step to step are tensors, which a graph reads anew each time.
        self._lr, self._weight = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        self._adam = torch.optim.Adam(
            self.trained.values(), self._lr if cuda else 0.0, fused=self.device.type != "mps", capturable=cuda
        )
        for p in self.trained.values():
            p.grad = torch.zeros_like(p)
            self._adam.state[p] = {
                "step": torch.tensor(0.0, device=self.device if cuda else "cpu"),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        self.penalty = torch.tensor(_PENALTY_START, device=self.device)
        self._last = {name: torch.zeros((), device=self.device) for name in ("loss", "error", "l0")}
        self._reviving = False
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def report(self) -> dict[str, float]:
        dead = float((self.silent > self.dead_after).float().mean())
        self._reviving = dead > 0
        return {name: float(value) for name, value in self._last.items()} | {"dead": dead}

    def _moments(self) -> dict[str, torch.Tensor]:
        names = {"moment": "exp_avg", "square": "exp_avg_sq", "step": "step"}
        state = {
            f"{name}.{own}": self._adam.state[p][theirs]
            for own, p in self.trained.items()
            for name, theirs in names.items()
        }
        return state | {"penalty": self.penalty}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        super().restore(state)
        self.report()

    def __call__(self, raw: torch.Tensor, lr: float) -> None:
        self._lr.fill_(lr)
        self._weight.fill_(self._rate())
        raw = raw.to(self.device, self.sae.b_dec.dtype, non_blocking=True)
        if self.count == 0:
            self._calibrate(raw)
        if self.device.type == "cuda" and self.count >= 3:
            self._replay(raw)
        else:
            if self.device.type == "cpu":
                self._reviving = bool((self.silent > self.dead_after).any())
            for group in self._adam.param_groups:
                group["lr"] = self._lr if self.device.type == "cuda" else lr
            self._step(raw)
        self.count += 1

    def _replay(self, raw: torch.Tensor) -> None:
        """Does the step by a CUDA graph, recorded when this number of rows comes for the first time."""
        key = (len(raw), self._reviving)
        if key not in self._graphs:
            rows = raw.clone()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step(rows)
            self._graphs[key] = graph, rows
        graph, rows = self._graphs[key]
        rows.copy_(raw)
        graph.replay()

    def _step(self, raw: torch.Tensor) -> None:
        self.gradients(raw)
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.values(), self.recipe.clip)
        self._adam.step()
        with torch.no_grad():
            if self.recipe.decoder == "unit_norm":
                self.sae.W_dec /= self.sae.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)
            if self.sae.settings.method == "jumprelu":
                self.sae.threshold.clamp_min_(1e-3)

    def gradients(self, raw: torch.Tensor) -> None:
        """Computes the gradients of all parameters at rows [n, d], as they are before clipping."""
        sae, n, d = self.sae, len(raw), self.sae.settings.width
        for p in self.trained.values():
            p.grad.zero_()
        with torch.no_grad():
            target = sae.standardise(raw)
        rest = torch.empty_like(target)
        cut = self._of_the_batch(target) if sae.settings.method == "batchtopk" else None
        loss, active = torch.zeros_like(self._last["loss"]), torch.zeros_like(self._last["l0"])
        fired = torch.zeros_like(self.silent, dtype=torch.bool)
        dead = self.silent > self.dead_after
        for part, wrong in zip(target.split(self._chunk), rest.split(self._chunk), strict=True):
            z, extra = self._codes(self._pre(part), cut)
            x_hat, squares, start = sae.b_dec, 0.0, 0
            for end in self.ends:
                with self._low_precision():
                    added = z[:, start:end] @ sae.W_dec[start:end]
                x_hat, start = x_hat + added, end
                squares = squares + (part - x_hat).square().sum()
            piece = squares / (n * d * len(self.ends)) + self.penalty * extra / n
            piece.backward()
            wrong.copy_((part - x_hat).detach())
            loss += piece.detach()
            active += (z > 0).sum() / n
            fired |= (z > 0).any(0)
        power = rest.square().sum()
        if self._reviving and self.recipe.auxk:
            k = min(max(1, d // 2), sae.settings.latents)
            for part, wrong in zip(target.split(self._chunk), rest.split(self._chunk), strict=True):
                values, indices = self._pre(part).masked_fill(~dead, -torch.inf).topk(k, dim=-1, sorted=False)
                z = torch.zeros(len(part), sae.settings.latents, dtype=values.dtype, device=self.device)
                with self._low_precision():
                    guess = z.scatter(1, indices, values.relu()) @ sae.W_dec
                auxiliary = self.recipe.auxk * (wrong - guess).square().sum() / power.clamp_min(1e-30)
                auxiliary.backward()
                loss += auxiliary.detach()
        with torch.no_grad():
            if self.recipe.decoder == "unit_norm":
                sae.W_dec.grad -= (sae.W_dec.grad * sae.W_dec).sum(1, keepdim=True) * sae.W_dec
            if sae.settings.method in ("relu", "jumprelu"):
                self.penalty *= torch.exp(_PENALTY_RATE * (active / sae.settings.k - 1).clamp(-1, 1))
        self.silent += n
        self.silent.masked_fill_(fired, 0)
        for name, value in (("loss", loss), ("error", power / (n * d)), ("l0", active)):
            self._last[name].copy_(value)

    def _low_precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)

    def _pre(self, part: torch.Tensor) -> torch.Tensor:
        with self._low_precision():
            pre = self.sae.pre_activations(part)
        return pre.to(part.dtype)

    def _codes(self, pre: torch.Tensor, cut: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Pre-activations [m, F] -> the latents [m, F], and the sum over tokens of what the penalty weighs."""
        sae, method = self.sae, self.sae.settings.method
        if method in ("topk", "matryoshka"):
            values, indices = pre.topk(sae.settings.k, dim=-1, sorted=False)
            return torch.zeros_like(pre).scatter(1, indices, values.relu()), 0.0
        if method == "batchtopk":
            return pre * (pre >= cut), 0.0
        if method == "jumprelu":
            return _Jump.apply(pre, sae.threshold)
        z = pre.relu()
        return z, (z.sum(0) * sae.W_dec.norm(dim=1)).sum()

    @torch.no_grad()
    def _of_the_batch(self, target: torch.Tensor) -> torch.Tensor:
        """Returns the value that the k·n largest pre-activations of a batch reach, and lets the threshold follow it."""
        wanted = self.sae.settings.k * len(target)
        best = target.new_zeros(0)
        for part in target.split(self._chunk):
            found = torch.cat([best, self._pre(part).relu().flatten()])
            best = found.topk(min(wanted, len(found)), sorted=False).values
        cut = torch.where(best > 0, best, torch.inf).min()  # where fewer are positive, the smallest that is
        if self.sae.settings.method == "batchtopk":
            self.sae.threshold += (cut - self.sae.threshold) * self._weight
        return cut

    @torch.no_grad()
    def _calibrate(self, raw: torch.Tensor) -> None:
        """Lets relu and jumprelu start with k latents per token."""
        if self.sae.settings.method == "jumprelu":
            self.sae.threshold.fill_(self._of_the_batch(self.sae.standardise(raw)))
        elif self.sae.settings.method == "relu":
            self.sae.b_enc -= self._of_the_batch(self.sae.standardise(raw))


class _Jump(torch.autograd.Function):
    """pre, θ -> JumpReLU pre · H(pre - θ) and L0 Σ H(pre - θ).

    Their pseudo-derivatives by θ are -θ/ε · r and -1/ε · r, with r = 1 where |pre - θ| < ε/2, else 0 (Rajamanoharan et
    al. 2024, arXiv 2407.14435, equations 11 and 12).
    """

    @staticmethod
    def forward(ctx: Any, pre: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(pre, threshold)
        on = pre > threshold
        return pre * on, on.sum().to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, by_z: torch.Tensor, by_count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < _BANDWIDTH / 2) / _BANDWIDTH
        by_threshold = -(near * (threshold * by_z + by_count)).sum(0)
        return by_z * (pre > threshold), by_threshold
