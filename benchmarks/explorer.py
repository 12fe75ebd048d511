"""The size and the loading time of the explorer's views, in headless Chromium, from disk.

    uv run python benchmarks/explorer.py                                     # a synthetic grid: 12 points, 1,000 images
    uv run python benchmarks/explorer.py --open results/concepts/explorer    # one that the workflow made

Prints for each view: milliseconds from the start of the navigation until the view is shown and until its last chart is
drawn (medians), and the bytes of the files that it loaded.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pandas as pd
from playwright.sync_api import sync_playwright

from sae.evidence.measures import MEASURES
from sae.explorer import page, parts

DRAWN = "() => [...document.querySelectorAll('.plot')].every((e) => e.querySelector('canvas'))"


def synthetic(folder: Path, latents: int, images: int) -> None:
    """Writes a grid of 4 layers x 3 ks with six baselines, and one point's table, filled with random numbers."""
    rng = np.random.default_rng(0)
    methods = ["topk", "neurons", "pca", "ica", "kmeans", "random", "sampled", "soft_frozen"]
    keys = [(la, k, m, 0) for la in (3, 6, 9, 11) for k in (16, 32, 64) for m in methods]
    metrics = pd.DataFrame(keys, columns=["layer", "k", "method", "seed"]).assign(l0=lambda t: t["k"])
    for name in ("fvu", "dead", "dense", "top1_agreement", "kl", "ce_recovered_mean", "output_cosine"):
        metrics[name] = rng.random(len(metrics))
    draws = rng.random((len(metrics) * len(MEASURES), 200))
    summaries = metrics[["layer", "k", "method", "seed"]].merge(pd.DataFrame({"measure": list(MEASURES)}), how="cross")
    summaries = summaries.assign(value=draws.mean(1), low=0.4, high=0.6, n=images, draws=list(draws))
    facts = {"name": "synthetic", "model": "vit_tiny_patch16_224", "tokens": "patches"}
    facts["geometry"] = {"blocks": 12, "width": 192, "prefix": ["class"], "patches": [14, 14], "side": [224, 224]}
    facts["geometry"]["outputs"] = 1000
    facts["classes"] = [["label", f"class {i}", images // 100] for i in range(100)]
    parts.write(folder / "data", "grid", page.grid(metrics, summaries, methods[:1], methods[1:], facts))
    manifest = pd.DataFrame({"id": range(images), "split": "train", "status": "ok"})
    manifest["path"] = [f"n{i:08d}/picture-{i}.jpg" for i in range(images)]
    manifest["label"] = [f"class {i % 100}" for i in range(images)]
    parts.write(folder / "data", "images", page.image_list(manifest, range(images), range(images)))
    random = {name: parts.numbers(rng.random(latents)) for name in ("mcc", "density", "images", "max", "stability")}
    random |= {name: parts.numbers(rng.random(latents)) for name in ("monosemanticity", "coherence", "effect")}
    table = {"size": latents, "alive": parts.pack(np.ones(latents), "u1")}
    table |= {"token_types": [], "token_type": [-1] * latents}
    table |= {"names": [f"class {i}" for i in range(100)], "class": rng.integers(-1, 100, latents).tolist()}
    parts.write(folder / "data", "layer=6/k=32/method=topk/seed=0/table", table | random)
    page.app(folder / "app")
    page.page(folder / "index.html")


def measure(folder: Path, links: list[str], runs: int) -> pd.DataFrame:
    """Opens each view `runs` times, each in a browser context of its own."""
    rows = []
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        for link in links:
            shown, drawn, files = [], [], set()
            for _ in range(runs):
                context = chromium.new_context(viewport={"width": 1280, "height": 800})
                view = context.new_page()
                view.on("request", lambda request, files=files: files.add(request.url))
                view.goto((folder / "index.html").resolve().as_uri() + link)
                view.wait_for_function("() => document.getElementById('main').dataset.ready")
                shown.append(view.evaluate("performance.getEntriesByName('shown')[0].startTime"))
                view.wait_for_function(DRAWN)
                drawn.append(view.evaluate("performance.now()"))
                context.close()
            paths = [Path(unquote(urlparse(url).path)) for url in files if url.startswith("file:")]
            size = sum(path.stat().st_size for path in paths if path.is_file())
            cells = (statistics.median(shown), statistics.median(drawn), size / 1e6)
            rows.append([link or "(grid)", *(round(c, 2) for c in cells)])
        chromium.close()
    return pd.DataFrame(rows, columns=["view", "shown (ms)", "charts drawn (ms)", "loaded (MB)"])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--open", type=Path, help="an explorer folder; without it a synthetic one is made")
    arguments.add_argument("--latents", type=int, default=3072)
    arguments.add_argument("--images", type=int, default=1000)
    arguments.add_argument("--runs", type=int, default=5)
    given = arguments.parse_args()
    if given.open:
        points = sorted(given.open.glob("data/layer=*/k=*/method=*/seed=*"))
        here = "&".join(points[0].relative_to(given.open / "data").parts)
        print(
            measure(given.open, ["", f"#{here}", f"#{here}&latent=1", "#images=", "#classes="], given.runs).to_string(
                index=False
            )
        )
        every = [path for path in given.open.rglob("*") if path.is_file()]
        total = sum(path.stat().st_size for path in every)
        data = sum(path.stat().st_size for path in every if "data" in path.relative_to(given.open).parts[:1])
        latents = sum(
            part.read_text().count('"headline"') for folder in points for part in (folder / "latents").glob("*.js")
        )
        print(f"{total / 1e6:.0f} MB in {len(every)} files; data: {data / latents / 1e3:.1f} kB per latent")
        return
    with tempfile.TemporaryDirectory() as folder:
        synthetic(Path(folder), given.latents, given.images)
        print(measure(Path(folder), ["", "#layer=6&k=32", "#images=", "#classes="], given.runs).to_string(index=False))


if __name__ == "__main__":
    main()
