"""Edges from the latents of one layer to those of a later one: their causes, by the ViT's gradient.

`matching` compares activations, which may rise together without a cause. Here the gradient of a latent's pre-activation
by the tokens of the earlier layer is computed on the images on which the latent is strongest, at its strongest token.
An earlier latent i then adds about

    Σ_t z_i(t) / scale · W_dec[i] · ∂ pre-activation / ∂ x(t)

to it, through attention, MLPs and the residual stream alike (sparse feature circuits, Marks et al. 2024, arXiv
2403.19647). Edges are given as shares of the latent's pre-activation. The control has the same activations, and
directions of random other latents with the same norms; since edges are shown by size, so are the controls.

For a sample of latents, their strongest edge and a random one are compared with exact removal: the earlier latent is
taken out, and the blocks between the layers run again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sae.evidence.attribution import agree, others
from sae.latent_codes import Codes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sae.autoencoder import SparseAutoencoder
    from sae.store import Activations

_DENSE = 2**24  # numbers of a dense matrix of latents
KEPT = 8  # edges into a latent, the strongest
COLUMNS = ["latent", "target", "share", "control", "removed", "images"]


@dataclass(frozen=True)
class Side:
    """A dictionary of one layer and its codes of the sample."""

    layer: int
    model: SparseAutoencoder
    codes: Codes


def edges(
    vit: nn.Module,
    source: Side,
    target: Side,
    x: Activations,
    chosen: slice,
    latents: int = 24,
    images: int = 4,
    batch: int = 64,
) -> pd.DataFrame:
    """Returns the strongest edges into each latent of a later layer, and those that were checked by removal.

    Args:
        x: *all* tokens of the sample after the source's layer, in the order of the codes.
        chosen: the tokens that the dictionaries read.
        latents: how many target latents are checked.
        images: how many images stand for a target, those on which it is strongest.
        batch: images in one forward pass.

    Returns:
        latent (of the source), target; share: the sum of the latent's contributions over the target's images, divided
        by that of the target's pre-activations; control: of the edge in n-th place, the control in n-th place by size,
        of a random edge its own; removed: the share that removal takes away, NaN where it was not measured; images.
        Sorted by target, the largest shares first.
    """
    place = _places(target.codes, images)
    size = source.model.config.latents
    estimate, control = (np.zeros((target.model.config.latents, size), np.float32) for _ in range(2))
    strength = np.zeros(len(estimate))
    run = _Between(vit, source, target, chosen)
    batch = max(1, min(batch, _DENSE // (source.codes.tokens * size)))
    directions = run.directions()
    for first in range(0, len(place), batch):
        rows = place.iloc[first : first + batch]
        stream, z = run.inputs(x, rows)
        slopes, reached = run.slopes(stream, rows)
        for way, out in zip(directions, (estimate, control), strict=True):
            np.add.at(out, rows["target"], run.effects(slopes, z, way))
        np.add.at(strength, rows["target"], reached)
    table = _strongest(estimate, control, strength)
    table["removed"] = np.nan
    checked = _checked(table, estimate, control, strength, latents)
    table = pd.concat([table, checked[~checked.index.isin(table.index)]])
    for (latent, aim), _row in checked.iterrows():
        rows = place[place["target"] == aim]
        stream, z = run.inputs(x, rows)
        table.loc[(latent, aim), "removed"] = run.removal(stream, z, rows, latent) / strength[aim]
    table["images"] = place.groupby("target").size().reindex(table.index.get_level_values("target")).to_numpy()
    table = table.reset_index()
    order = np.lexsort((-table["share"].abs(), table["target"]))
    return table.iloc[order].reset_index(drop=True)[COLUMNS]


def agreement(table: pd.DataFrame) -> tuple[float, float]:
    """Returns how the checked edges agree with their removal: Spearman's correlation, and the share of equal signs,
    weighted by the removal. NaN where fewer than three were checked."""
    known = table[table["removed"].notna()]
    return agree(known["removed"].to_numpy(), known["share"].to_numpy()) if len(known) >= 3 else (np.nan, np.nan)


class _Between:
    """The blocks between two layers, from the tokens of the one to a latent of the other."""

    def __init__(self, vit: nn.Module, source: Side, target: Side, chosen: slice):
        self._vit, self._source, self._target, self._chosen = vit, source, target, chosen
        self._device = next(vit.parameters()).device
        self._decoder = source.model.W_dec.detach() / source.model.scale  # in the units of x

    def directions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the decoder's rows, and those of random other latents with the same norms, [F, d] each."""
        import torch

        norms = self._decoder.norm(dim=1)
        other = torch.from_numpy(others(self._source.codes, 0)).to(self._device)
        return self._decoder, self._decoder[other] * (norms / norms[other].clamp_min(1e-12))[:, None]

    def inputs(self, x: Activations, rows: pd.DataFrame) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns all tokens [b, tokens, d] of these images, and the source's latents there, [b, T, F]."""
        import torch

        codes, image = self._source.codes, rows["image"].to_numpy()
        z = codes.z[(image[:, None] * codes.tokens + np.arange(codes.tokens)).ravel()].toarray()
        stream = torch.from_numpy(x.read(image)).to(self._device).float()
        return stream, torch.from_numpy(z).to(self._device).view(len(image), codes.tokens, -1)

    def slopes(self, stream: torch.Tensor, rows: pd.DataFrame) -> tuple[torch.Tensor, np.ndarray]:
        """Returns the gradients [b, T, d] of the targets' pre-activations, and these, [b]."""
        import torch

        part = stream[:, self._chosen].clone().requires_grad_()
        whole = stream.clone()
        whole[:, self._chosen] = part
        reached = self._reached(whole, rows)
        return torch.autograd.grad(reached.sum(), part)[0], reached.detach().cpu().numpy()

    def effects(self, slopes: torch.Tensor, z: torch.Tensor, directions: torch.Tensor) -> np.ndarray:
        """Returns what each latent of the source adds to the targets, [b, F]."""
        return ((slopes @ directions.T) * z).sum(1).cpu().numpy()

    def removal(self, stream: torch.Tensor, z: torch.Tensor, rows: pd.DataFrame, latent: int) -> float:
        """Returns the targets' loss, summed over the images, when a latent of the source is taken out."""
        import torch

        without = stream.clone()
        without[:, self._chosen] -= z[:, :, latent, None] * self._decoder[latent]
        with torch.no_grad():
            return float((self._reached(stream, rows) - self._reached(without, rows)).sum())

    def _reached(self, stream: torch.Tensor, rows: pd.DataFrame) -> torch.Tensor:
        """Returns the pre-activations of the targets [b] at their tokens."""
        import torch

        from sae import vit as vits

        model = self._target.model
        after = vits.resume(self._vit, stream, self._source.layer, self._target.layer)[:, self._chosen]
        token, latent = (torch.tensor(rows[name].to_numpy(), device=self._device) for name in ("token", "target"))
        pre = model.pre_activations(model.standardise(after[torch.arange(len(after)), token].float()))
        return pre.gather(1, latent[:, None])[:, 0]


def _places(codes: Codes, images: int) -> pd.DataFrame:
    """Returns target, image (its row) and token for the images on which each latent is strongest."""
    assert codes.images is not None and codes.places is not None
    pattern = codes.images.tocoo()
    found = pd.DataFrame({"target": pattern.col, "image": pattern.row, "token": codes.places.data, "z": pattern.data})
    found = found.sort_values(["target", "z", "image"], ascending=[True, False, True], kind="stable")
    return found.groupby("target").head(images).astype({"target": np.int64, "image": np.int64}).reset_index(drop=True)


def _strongest(estimate: np.ndarray, control: np.ndarray, strength: np.ndarray) -> pd.DataFrame:
    """Returns share and control of the strongest edges into each target that fires, by (latent, target)."""
    targets = np.flatnonzero(strength > 0)
    best, largest = (np.argsort(-abs(m[targets]), axis=1, kind="stable")[:, :KEPT] for m in (estimate, control))
    aims = np.repeat(targets, best.shape[1])
    table = _rows(best.ravel(), aims, estimate, control, strength)
    table["control"] = control[aims, largest.ravel()] / strength[aims]
    return table[table["share"] != 0]


def _checked(
    table: pd.DataFrame, estimate: np.ndarray, control: np.ndarray, strength: np.ndarray, latents: int
) -> pd.DataFrame:
    """Returns the edges to be checked: of a sample of targets the strongest one, and a random one."""
    rng = np.random.default_rng([0, 1])
    targets = table.index.get_level_values("target").unique().to_numpy()
    targets = np.sort(rng.choice(targets, min(latents, len(targets)), replace=False))
    pairs = []
    for target in targets:
        strongest = int(abs(estimate[target]).argmax())
        rest = np.setdiff1d(np.flatnonzero(estimate[target]), [strongest])
        pairs += [(latent, target) for latent in (strongest, *rng.choice(rest, min(1, len(rest))))]
    latent, target = np.array(pairs, np.int64).reshape(-1, 2).T
    return _rows(latent, target, estimate, control, strength)


def _rows(
    latent: np.ndarray, target: np.ndarray, estimate: np.ndarray, control: np.ndarray, strength: np.ndarray
) -> pd.DataFrame:
    shares = {
        "share": estimate[target, latent] / strength[target],
        "control": control[target, latent] / strength[target],
    }
    return pd.DataFrame(shares, pd.MultiIndex.from_arrays([latent, target], names=["latent", "target"]))
