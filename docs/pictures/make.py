"""Makes the README's pictures from the finished default experiment: `uv run python docs/pictures/make.py`.

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


def shot(page: Page, name: str, width: int, height: int | None = None) -> None:
    """Saves what the page shows as a JPEG (photographic) or PNG (lines), by the name's ending."""
    clip = None if height is None else {"x": 0, "y": 0, "width": width, "height": height}
    picture = Image.open(io.BytesIO(page.screenshot(full_page=height is None, clip=clip))).convert("RGB")
    options = {"optimize": True} | ({"quality": 68, "progressive": True} if name.endswith(".jpg") else {})
    picture.save(HERE / name, **options)


def main() -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    shutil.copyfile(RESULTS / "report/conclusion.svg", HERE / "conclusion.svg")
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 1200, "height": 100})
        for figure, name in ((f"{POINT}/latents.svg", "latents.jpg"), ("layers.svg", "layers.png")):
            svg = (RESULTS / "report" / figure).read_text()
            page.set_content(f"<style>body{{margin:0}}svg{{width:1200px;height:auto}}</style>{svg}")
            shot(page, name, 1200)
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
