"""Makes the pictures of the README and the site from the default experiment: `uv run python docs/pictures/make.py`.

The workflow has drawn the figures; headless Chromium turns them into pictures and opens the explorer, as people do.
"""

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
RESULTS = HERE.parent.parent / "results/concepts"
POINT = "layer=3/k=8/method=matryoshka/seed=0"
LATENT = "#layer=3&k=8&latent="
# The figures of docs/figures.md, by the names of their pictures.
FIGURES = {"overview": "overview.svg", "other_ks": "other_ks.svg", "statistics": "layer=3/statistics.svg"}
FIGURES |= {"across_ks": "layer=3/across-ks-matryoshka-0.svg", "across_layers": "across-layers/k=8-matryoshka-0.svg"}
OF_POINT = ("training", "density", "classes", "stability", "monosemanticity", "probes", "interventions")
FIGURES |= {name: f"{POINT}/{name}.svg" for name in OF_POINT}


def shot(page: Page, name: str, width: int, height: int | None = None) -> None:
    """Saves what the page shows as a JPEG (photographic) or PNG (lines), by its ending; few colours in figures/."""
    clip = None if height is None else {"x": 0, "y": 0, "width": width, "height": height}
    picture = Image.open(io.BytesIO(page.screenshot(full_page=height is None, clip=clip))).convert("RGB")
    if name.startswith("figures/"):
        picture = picture.quantize(48, dither=Image.Dither.NONE)
    options = {"optimize": True} | ({"quality": 68, "progressive": True} if name.endswith(".jpg") else {})
    picture.save(HERE / name, **options)


def main() -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    shutil.copyfile(RESULTS / "report/conclusion.svg", HERE / "conclusion.svg")
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 1200, "height": 100})
        figures = [(f"{POINT}/latents.svg", "latents.jpg", 1200), ("layers.svg", "layers.png", 1200)]
        figures += [(figure, f"figures/{name}.png", 900) for name, figure in FIGURES.items()]
        for figure, name, width in figures:
            page.set_viewport_size({"width": width, "height": 100})
            svg = (RESULTS / "report" / figure).read_text()
            page.set_content(f"<style>body{{margin:0}}svg{{width:{width}px;height:auto;display:block}}</style>{svg}")
            shot(page, name, width)
        page.set_viewport_size({"width": 1200, "height": 1000})
        page.goto((RESULTS / "explorer/index.html").as_uri() + "#layer=3&k=8&filter=-position-driven")
        page.wait_for_selector("tr[data-row]")
        best = page.locator("tr[data-row]").first.get_attribute("data-row")
        page.goto((RESULTS / "explorer/index.html").as_uri() + LATENT + best)
        page.wait_for_selector(".plot canvas")
        page.wait_for_timeout(1000)
        shot(page, "explorer.jpg", 1200, 1000)
        chromium.close()


if __name__ == "__main__":
    main()
