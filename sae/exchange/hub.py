"""A folder with one SAE that is ready for a model hub: weights in several formats, figures, and a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from sae import autoencoder
from sae.evidence.measures import COMPARED, MEASURES
from sae.exchange.writing import LIBRARIES, export, refusal
from sae.files import read_json, whole
from sae.light_timm import timm

_LOADED_BY = {
    "saelens": ("SAELens", 'from sae_lens import SAE\n\nmodel = SAE.load_from_disk("saelens")'),
    "sparsify": ("sparsify", 'from sparsify import SparseCoder\n\nmodel = SparseCoder.load_from_disk("sparsify")'),
}


def publish(
    source: Path,
    out: Path,
    summaries: pd.DataFrame,
    metrics: pd.DataFrame,
    figures: Mapping[str, Path],
    reference: Mapping[str, Any],
    x: np.ndarray | Tensor,
) -> None:
    """Writes the folder `out`: README.md, the SAE in this project's format and in those of other libraries, figures.

    Args:
        source: the SAE's folder, with sae.json and sae.safetensors.
        summaries: tables of `summary.table` with a column `method`, for the SAE (first) and its baselines.
        metrics: of the SAE, one row.
        figures: caption -> picture.
        reference: what reference.json tells of the ViT.
        x: activations [n, d] on which the other formats are checked.

    Raises:
        InputError: the SAE is damaged, or a format that can express it would change it.
    """
    model = autoencoder.load(source)
    out.mkdir(parents=True, exist_ok=True)
    for path in (source / "sae.safetensors", source / "sae.json", *figures.values()):
        shutil.copyfile(path, out / path.name)
    refused = {}
    for library in LIBRARIES:
        if reason := refusal(model, library):
            refused[_LOADED_BY[library][0]] = reason
        else:
            export(model, out / library, library, x)
    pictures = {caption: path.name for caption, path in figures.items()}
    text = card(read_json(source / "sae.json"), summaries, metrics.iloc[0], pictures, reference, refused)
    with whole(out / "README.md") as part:
        part.write_text(text)


def card(
    facts: Mapping[str, Any],
    summaries: pd.DataFrame,
    metrics: Mapping[str, Any],
    figures: Mapping[str, str],
    reference: Mapping[str, Any],
    refused: Mapping[str, str],
) -> str:
    """Returns the text of a model card, with its block of YAML.

    Args:
        facts: of sae.json.
        refused: library -> the reason why its format cannot express this SAE; also see `publish`.
    """
    from huggingface_hub import ModelCard, ModelCardData  # here: its import takes a second

    vit, point = reference["model"]["name"], facts["provenance"]["wildcards"]
    known = timm.models.get_pretrained_cfg(vit, allow_unregistered=True)
    base = known.hf_hub_id if known and reference["weights"] is None else None
    data = ModelCardData(base_model=base, tags=["sparse-autoencoder", "interpretability", "vision-transformer", "timm"])
    provenance, training = facts["provenance"], facts["training"]
    made = {"training": training} | {key: provenance[key] for key in ("settings", "versions")}
    origin = f"Imported from {training['imported_from']}" if "imported_from" in training else "Trained by sae-vit"
    said = [
        f"# A sparse autoencoder on layer {facts['layer']} of {vit}",
        f"{facts['latents']:,} latents on the residual stream after block {facts['layer']} (counted from 0), "
        f"{facts['tokens']} tokens, width {facts['width']}; {metrics['l0']:.3g} latents are active on a token. "
        f"Method {point['method']}, seed {point['seed']}. {origin}.",
        "## Load it",
        "Each takes raw activations of the ViT: the standardisation is part of the weights.",
        '```python\nimport sae\n\nmodel = sae.load(".")\nz = model.encode(x)  # x: [n, d]; z: [n, latents]\n```',
        *(f"```python\n{code}\n```" for library, code in _LOADED_BY.values() if library not in refused),
        *(f"Not in the format of {library}: {reason}." for library, reason in refused.items()),
        "## How good it is",
        "On held-out images, with 95 % intervals, beside the best dictionary that is no SAE. Where it reaches the SAE, "
        "the SAE adds nothing by this measure.",
        _table(summaries),
        f"With its reconstructions in place of the layer, the ViT predicts the same class on "
        f"{metrics['top1_agreement']:.1%} of the images."
        if pd.notna(metrics["top1_agreement"])
        else "The ViT has no classifier, so predictions were not compared.",
        *(f"## {caption}\n\n![{caption}]({name})" for caption, name in figures.items()),
        "## Limits",
        "A latent's images show when it fires, not why. Half of the sheet's latents were drawn at random; judge the "
        "SAE by these. Classes and concepts are those of the images at hand; on other images, measure again.",
        f"## Provenance\n\n```json\n{json.dumps(made, indent=1)}\n```",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(said) + "\n"))


def _table(summaries: pd.DataFrame) -> str:
    """Returns the measures of the SAE and the best baseline by each, as Markdown."""
    lines = ["| measure | SAE | best baseline |", "|---|---|---|"]
    method = summaries["method"].iloc[0]
    for key in COMPARED:
        rows = summaries[summaries["measure"] == key].set_index("method")
        others = rows.drop(index=method, errors="ignore")
        if key == "stability":  # that of directions that do not depend on the seed means nothing
            others = others.drop(index=["neurons", "pca"], errors="ignore")
        if method not in rows.index:
            continue
        measure, own = MEASURES[key], rows.loc[method]
        best = "–"
        if len(others):
            rival = others["value"].idxmax() if measure.higher else others["value"].idxmin()
            best = f"{_number(others.loc[rival, 'value'], measure.unit)} ({rival})"
        low, high = _number(own["low"], measure.unit), _number(own["high"], measure.unit)
        better = "higher" if measure.higher else "lower"
        lines.append(
            f"| {measure.name}, {better} is better | {_number(own['value'], measure.unit)} ({low} to {high}) | {best} |"
        )
    return "\n".join(lines)


def _number(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "share" else f"{value:.2f}"
