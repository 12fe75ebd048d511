"""A page about an image outside the experiment: its prediction, its latents, and the train images nearest to it.

`snakemake look --config image=cat.jpg` writes it to results/<name>/look/cat.html; `look` does the same from Python.
Nothing else in the results changes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import matplotlib
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from sae import autoencoder, device, files, images, latent_codes, measure
from sae import vit as vits
from sae.config import page_name
from sae.errors import InputError
from sae.evidence import attribution
from sae.images.pixels import read_pixels
from sae.images.reading import read_image
from sae.store import Activations

_LATENTS, _NEAREST, _PREDICTED = 8, 6, 5
_PICTURE = 128  # width of a small picture, pixels
_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 75rem; padding: 0 1.2rem; color: #222 }
h2 { margin: 2rem 0 .3rem } .quiet { color: #636a73 } a { color: #b5410f }
.row { display: flex; flex-wrap: wrap; gap: .8rem } figure { margin: 0; width: 128px; font-size: .82rem }
figure img { width: 128px; display: block; border-radius: 3px } .large img { width: 16rem; image-rendering: auto }
td { padding: .1rem .8rem .1rem 0 }
"""


def look(
    image: str | Path,
    results: str | Path,
    vit: nn.Module | None = None,
    out: str | Path | None = None,
) -> Path:
    """Writes a page about an image: for every SAE of a finished run, the strongest latents and nearest train images.

    Args:
        image: a file that Pillow reads.
        results: the folder of the run, such as results/pets.
        vit: the run's ViT. None: it is loaded by its name, on the CPU, which a local checkpoint rules out.
        out: the page. None: look/<name of the image>.html in the folder of the run.

    Returns:
        the page's path.

    Raises:
        InputError: the image cannot be read, the run is not finished, or its ViT had a local checkpoint.
    """
    results, image = Path(results), Path(image).expanduser()
    out = Path(out or results / "look" / page_name(image))
    try:
        reference = files.read_json(results / "reference/reference.json")
        manifest = images.read_manifest(results / "manifest.parquet")
    except FileNotFoundError as error:
        raise InputError(f"{results}: no finished run: {Path(error.filename).name} is missing") from error
    if vit is None:
        if reference["weights"]:
            raise InputError(f"{results}: its ViT had a local checkpoint; load it with sae.vit.load and pass it as vit")
        vit = vits.load(**reference["model"], device=device.resolve("cpu"))
    try:
        pixels = vits.pixel_transform(vit)(read_image(image)).transpose(1, 2, 0)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{image}: cannot be read as an image: {error}") from error
    x = vits.normalise(vit)(pixels[None])
    with torch.inference_mode():
        logits = vit(x).float().cpu().numpy()[0]
    points = sorted(path.parent for path in (results / "ranking").glob("layer=*/k=*/method=*/seed=*/latents.parquet"))
    sections = [
        section
        for folder in sorted(points, key=_order)
        if (section := _section(results, folder.relative_to(results / "ranking"), vit, x, pixels, reference, manifest))
    ]
    if not sections:
        raise InputError(f"{results}: no finished run: it has no SAE with a ranking")
    name = escape(image.name)
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>',
        f'<h1>{name}</h1><div class="row"><div class="large">{_img(pixels, 512)}</div>',
        f"<div><h2>The ViT's prediction</h2>{_predictions(logits, reference)}</div></div>",
        '<p class="quiet">Colour: where the latent fires. Below: its activation, as a share of its largest one on any '
        "image of the experiment; its confirmed class; its largest estimated effect on the prediction (nats).</p>",
        *sections,
    ]
    with files.whole(out) as part:
        part.write_text("\n".join(parts) + "</html>\n")
    return out


def _section(
    results: Path,
    point: Path,
    vit: nn.Module,
    x: torch.Tensor,
    pixels: np.ndarray,
    reference: Mapping[str, Any],
    manifest: pd.DataFrame,
) -> str | None:
    """Returns the part of the page about one SAE; None for a baseline."""
    where = dict(part.split("=") for part in point.parts)
    if where["method"] in autoencoder.BASELINES:
        return None
    model = autoencoder.load(results / "sae" / point, next(vit.parameters()).device)
    layer, geometry = int(where["layer"]), vits.geometry(vit)
    with torch.inference_mode():
        # Half precision, as in the store of activations that the SAE was trained on.
        stream = vits.read(vit, x, layer).half().cpu().numpy()
    chosen = geometry.select(model.config.tokens)
    rows = torch.from_numpy(stream[0, chosen]).to(model.b_dec.device).float()
    with torch.inference_mode():
        values, indices = model.select(model.pre_activations(model.standardise(rows)))
    codes = measure.codes_of(np.zeros(1, np.int64), len(rows), model.config.latents, values, indices)
    one = Activations([stream], np.zeros(1, np.int64), np.zeros((1, 2), np.int64), slice(None))
    statistics = files.read_json(results / f"activations/layer={layer}/statistics.json")
    centre = np.array(statistics["mean"]), statistics["scale"]
    found = attribution.attribute(model, codes, attribution.gradients(vit, one, layer, chosen, *centre))
    assert codes.images is not None
    order = np.argsort(-codes.images.data, kind="stable")[:_LATENTS]
    latents = pd.read_parquet(results / "ranking" / point / "latents.parquet").set_index("latent")
    pages = Path("../explorer/index.html")
    figures = []
    for place in order:
        latent, value = int(codes.images.indices[place]), float(codes.images.data[place])
        fact, z = latents.loc[latent], codes.z[:, [latent]].toarray().ravel()
        heat = z[-geometry.count :].reshape(geometry.patches) if len(z) >= geometry.count else None
        share = f" ({value / fact['max_activation']:.0%})" if fact["max_activation"] > 0 else ""
        kind = "" if fact["top_attribute"] in (None, "label") else f"{fact['top_attribute']}: "
        about = f"{kind}{fact['top_name']}" if fact["confirmed"] else "no confirmed class"
        effect = _effect(found.effects[place], found.predicted[0], reference)
        link = f"{pages}#{urlencode(where | {'latent': latent})}"
        figures.append(
            f'<figure><a href="{escape(link)}">{_img(pixels, _PICTURE, heat)}latent {latent}</a><br>'
            f'{value:.2f}{share}<br>{escape(about)}<br><span class="quiet">{escape(effect)}</span></figure>'
        )
    title = f"Layer {layer}, k {where['k']}, {where['method']}, seed {where['seed']}"
    return (
        f'<h2>{title}</h2><div class="row">{"".join(figures) or "No latent fires."}</div>'
        f'<p class="quiet">The train images with the most similar latents (cosine of the strongest activations):</p>'
        f'<div class="row">{_nearest(results, point, codes, manifest)}</div>'
    )


def _nearest(results: Path, point: Path, codes: latent_codes.Codes, manifest: pd.DataFrame) -> str:
    """Returns pictures of the train images whose strongest activations point in the same direction."""
    known = latent_codes.codes(results / "codes" / point)
    assert known.images is not None and known.image_ids is not None and codes.images is not None
    train = np.isin(known.image_ids, images.used(manifest, images.TRAIN)["id"])
    lengths = np.sqrt(known.images.multiply(known.images).sum(1))
    own = codes.images.toarray().ravel()
    cosine = known.images @ own / np.maximum(lengths * np.linalg.norm(own), 1e-12)
    best = np.flatnonzero(train)[np.argsort(-cosine[train], kind="stable")[:_NEAREST]]
    ids = known.image_ids[best]
    shown = read_pixels(manifest, sorted((results / "pixels").glob("shard=*.npy")), ids.tolist())
    rows = manifest.set_index("id").loc[ids]
    labels = rows["label"] if "label" in rows else rows["path"]
    return "".join(
        f"<figure>{_img(shown[image], _PICTURE)}{value:.2f} {escape(images.describe(str(label)))}</figure>"
        for image, value, label in zip(ids.tolist(), cosine[best], labels, strict=True)
    )


def _predictions(logits: np.ndarray, reference: Mapping[str, Any]) -> str:
    """Returns a table of the most likely classes and their probabilities, a row per group of the head."""
    names: Mapping[str, Sequence[str]] = reference["class_names"]
    if not len(logits) or not reference["geometry"]["outputs"]:
        return "<p>This ViT has no classification head.</p>"
    ends = np.cumsum([len(values) for values in names.values()])[:-1]
    rows = []
    for group, part in zip(names or ["output"], np.split(logits, ends) if names else [logits], strict=True):
        p = np.exp(part - part.max())
        p /= p.sum()
        best = np.argsort(-p)[: 1 if len(names) > 1 else _PREDICTED]
        for i in best:
            name = images.describe(str(names[group][i])) if names else str(i)
            kind = f"<td>{escape(group)}</td>" if len(names) > 1 else ""
            rows.append(f"<tr>{kind}<td>{escape(name)}</td><td>{p[i]:.1%}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _effect(effects: np.ndarray, predicted: np.ndarray, reference: Mapping[str, Any]) -> str:
    """Returns the largest estimated effect of a latent on a predicted class, as text."""
    if not len(effects) or not effects.any():
        return ""
    names, group = reference["class_names"], int(abs(effects).argmax())
    name = images.describe(str([*names.values()][group][predicted[group]])) if names else str(predicted[group])
    return f"{'raises' if effects[group] > 0 else 'lowers'} {name} by {abs(effects[group]):.2g}"


def _img(pixels: np.ndarray, width: int, heat: np.ndarray | None = None) -> str:
    """Returns an image, under a map of activations [rows, columns] if there is one, as an element of the page."""
    height = round(width * pixels.shape[0] / pixels.shape[1])
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR).convert("RGB")
    if heat is not None and heat.any():
        level = heat / heat.max()
        colours = matplotlib.colormaps["viridis"](level)
        colours[..., 3] = np.where(level > 0, 0.25 + 0.5 * level, 0)
        layer = Image.fromarray((colours * 255).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(layer, (0, 0), layer)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=85)
    return f'<img alt="" src="data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}">'


def _order(folder: Path) -> tuple[Any, ...]:
    """Returns a key that sorts grid points by layer, k, method and seed."""
    values = [part.split("=")[1] for part in folder.parts[-4:]]
    return tuple(int(value) if value.isdigit() else value for value in values)
