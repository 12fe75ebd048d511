"""The training step by torch's own differentiation, for every method and device; see `step` for the loss."""

from __future__ import annotations

from typing import Any

import torch

from sae.autoencoder import PER_TOKEN
from sae.training.replay import Replay
from sae.training.step import Rows, Step

_CPU_CHUNK, _GPU_CHUNK = 2**20, 2**23  # how many pre-activations are held at once
_BANDWIDTH = 0.1  # of JumpReLU's slope, where E‖x̃‖² = d
_CALIBRATION = 0.75  # share of the run before JumpReLU's thresholds are trained; until then they are measured
_DEVIATION = 10.0  # weight of (L0/k - 1)²
_PENALTY_START, _PENALTY_RATE = 3e-3, 0.1  # relu's c, and how fast log c follows L0


class AutogradStep(Step):
    """The step by torch's own differentiation.

    On CUDA nothing waits for the host: the step is one CUDA graph, see `Replay`.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        model = self.model
        self.device = model.b_dec.device
        cuda = self.device.type == "cuda"
        self.rows = max(1, (_GPU_CHUNK if cuda else _CPU_CHUNK) // model.config.latents)
        # Numbers that change from step to step are tensors: a graph reads their values again in each replay.
        self._lr, self._weight = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        self._adam = torch.optim.Adam(
            self.trained.values(),
            self._lr if cuda else 0.0,
            self.config.betas,
            fused=self.device.type != "mps",
            capturable=cuda,
        )
        for name, p in self.trained.items():
            p.grad = self.grads[name]
            self._adam.state[p] = {
                "step": torch.tensor(0.0, device=self.device if cuda else "cpu"),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        start = _PENALTY_START if model.config.method == "relu" else 0.0
        self.penalty = torch.tensor(start, device=self.device)
        self._last = {name: torch.zeros((), device=self.device) for name in ("loss", "error", "l0")}
        self._reviving = False
        self._replay = Replay(self._step, self.device)

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

    def __call__(self, raw: torch.Tensor | Rows, lr: float) -> None:
        self._lr.fill_(lr)
        self._weight.fill_(self._rate())
        raw = raw[:].to(self.device, self.model.b_dec.dtype, non_blocking=self.device.type == "cuda")
        self._calibrate(raw)
        for group in self._adam.param_groups:
            group["lr"] = self._lr if self.device.type == "cuda" else lr
        self._replay(raw, self._reviving, len(self.ends))
        self.count += 1

    def _step(self, raw: torch.Tensor) -> None:
        self.gradients(raw)
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.clip)
        self._adam.step()
        with torch.no_grad():
            if self.unit_norm:
                self.model.W_dec.div_(self.model.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))
            self._hold()
            if self.model.config.method == "jumprelu":
                self.model.threshold.clamp_min_(1e-3)

    def gradients(self, raw: torch.Tensor | Rows) -> None:
        if self.device.type == "cpu":  # elsewhere the question would wait for the device: see `report`
            self._reviving = bool((self.silent > self.dead_after).any())
        model, n, d = self.model, len(raw), self.model.config.width
        for grad in self.grads.values():
            grad.zero_()
        with torch.no_grad():
            target = model.standardise(raw[:])
        rest = torch.empty_like(target)
        cut = self._of_the_batch(target) if model.config.method == "batchtopk" else None
        loss, active = torch.zeros_like(self._last["loss"]), torch.zeros_like(self._last["l0"])
        fired = torch.zeros_like(self.silent, dtype=torch.bool)
        dead = self.silent > self.dead_after
        for part, wrong in zip(target.split(self.rows), rest.split(self.rows), strict=True):
            z, extra = self._codes(self._pre(part), cut)
            x_hat: torch.Tensor = model.b_dec
            squares: torch.Tensor | float = 0.0
            start = 0
            for end in self.ends:
                with self._low_precision():
                    added = z[:, start:end] @ model.W_dec[start:end]
                x_hat, start = x_hat + added, end
                squares = squares + (part - x_hat).square().sum()
            piece = squares / (n * d * len(self.prefixes)) + self.penalty * extra / n
            piece.backward()
            wrong.copy_((part - x_hat).detach())
            loss += piece.detach()
            active += (z > 0).sum() / n
            fired |= (z > 0).any(0)
        power = rest.square().sum()
        if self._reviving and self.config.auxk:
            k = min(max(1, d // 2), model.config.latents)
            for part, wrong in zip(target.split(self.rows), rest.split(self.rows), strict=True):
                values, indices = self._pre(part).masked_fill(~dead, -torch.inf).topk(k, dim=-1, sorted=False)
                z = torch.zeros(len(part), model.config.latents, dtype=values.dtype, device=self.device)
                with self._low_precision():
                    guess = z.scatter(1, indices, values.relu()) @ model.W_dec
                auxiliary = self.config.auxk * (wrong - guess).square().sum() / power.clamp_min(1e-30)
                auxiliary.backward()
                loss += auxiliary.detach()
        with torch.no_grad():
            if self.config.encoder == "frozen":
                self.grads["W_enc"].zero_()
                self.grads["b_enc"].zero_()
            if self.unit_norm:
                grad = self.grads["W_dec"]
                grad.sub_((grad * model.W_dec).sum(1, keepdim=True) * model.W_dec)
            elif self.config.decoder == "frozen":
                self.grads["W_dec"].zero_()
            excess = active / model.config.k - 1
            if model.config.method == "relu":
                self.penalty *= torch.exp(_PENALTY_RATE * excess.clamp(-1, 1))
            elif model.config.method == "jumprelu":  # the derivative by L0, for the next batch
                self.penalty.copy_(2 * _DEVIATION * excess / model.config.k)
        self.silent += n
        self.silent.masked_fill_(fired, 0)
        for name, value in (("loss", loss), ("error", power / (n * d)), ("l0", active)):
            self._last[name].copy_(value)

    def _low_precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)

    def _pre(self, part: torch.Tensor) -> torch.Tensor:
        with self._low_precision():
            pre = self.model.pre_activations(part)
        return pre.to(part.dtype)

    def _codes(self, pre: torch.Tensor, cut: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Pre-activations [m, F] -> the latents [m, F], and the penalised quantity summed over tokens."""
        model, method = self.model, self.model.config.method
        if method in PER_TOKEN:
            values, indices = pre.topk(model.config.k, dim=-1, sorted=False)
            return torch.zeros_like(pre).scatter(1, indices, values.relu()), 0.0
        if cut is not None:  # batchtopk
            return pre * (pre >= cut), 0.0
        if method == "jumprelu":
            return _Jump.apply(pre, model.threshold)
        z = pre.relu()
        return z, (z.sum(0) * model.W_dec.norm(dim=1)).sum()

    @torch.no_grad()
    def _of_the_batch(self, target: torch.Tensor) -> torch.Tensor:
        """Returns the smallest of the k·n largest pre-activations of a batch, and lets the threshold follow it."""
        wanted = self.model.config.k * len(target)
        best = target.new_zeros(0)
        for part in target.split(self.rows):
            found = torch.cat([best, self._pre(part).relu().flatten()])
            best = found.topk(min(wanted, len(found)), sorted=False).values
        cut = torch.where(best > 0, best, torch.inf).min()  # where fewer are positive, the smallest that is
        if self.model.config.method == "batchtopk":
            self.model.threshold.add_((cut - self.model.threshold) * self._weight)
        return cut

    @torch.no_grad()
    def _calibrate(self, raw: torch.Tensor) -> None:
        """Lets relu start with k latents per token, and keeps jumprelu at k until its thresholds are trained."""
        if self.model.config.method == "relu" and self.count == 0:
            self.model.b_enc.sub_(self._of_the_batch(self.model.standardise(raw)))
        elif self.model.config.method == "jumprelu" and self.count < _CALIBRATION * self.steps:
            self.model.threshold.fill_(self._of_the_batch(self.model.standardise(raw)))


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
