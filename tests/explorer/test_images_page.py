"""The explorer's pages of images and classes."""

import re

import numpy as np
import pytest
from explorer_site import HOSTILE
from visitor import NEEDS_CHROMIUM

pytest_plugins = ["explorer_fixtures"]
pytestmark = NEEDS_CHROMIUM


def test_an_images_patch_lists_what_fires_there(visitor, site):
    page = visitor.open("#images=").page
    assert visitor.text(".count") == "60 of 60 images"
    href = page.locator(".picture a").first.get_attribute("href")
    visitor.open(f"{href}&patch=2,1&k=4&seed=0")
    image = int(re.search(r"\d+", href)[0])
    for place, layer in enumerate((0, 1)):
        z = site.codes[layer, 4, 0].of([image]).z.toarray()
        at = z[2 * 4 + 1]
        listed = page.locator(".layers section").nth(place).locator("li a")
        order = [int(n) for n in listed.all_inner_texts()]
        assert set(order) == set(np.flatnonzero(at))
        assert at[order].tolist() == pytest.approx(sorted(at, reverse=True)[: len(order)], abs=float(z.max()) / 200)
    assert "row 2, column 1" in visitor.text("#where")
    page.locator(".frame").press("ArrowRight")
    assert "row 2, column 2" in visitor.text("#where") and "patch=2%2C2" in page.evaluate("location.hash")
    page.locator(".frame").press("Escape")
    assert visitor.text("#where") == "Latents that fire on the whole image"
    box = page.locator(".frame").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.1)
    assert "row 0, column 3" in visitor.text("#where")
    first = page.locator(".layers li a").first
    first.hover()
    assert page.locator(".overlay canvas").count() == 1
    latent = first.inner_text()
    first.click()
    page.wait_for_function("() => location.hash.includes('latent=')")
    page.wait_for_function("(name) => document.querySelector('h1').textContent === name", arg=f"Latent {latent}")


def test_images_are_found_by_name_and_class(visitor, site):
    page = visitor.open("#images=").page
    page.fill("#search", "quoted")
    assert re.match(r"\d+ of 60 images", visitor.text(".count"))
    assert page.locator(".picture").count() == int(visitor.text(".count").split()[0]) > 0


def test_a_class_lists_its_latents_and_the_images_that_are_missed(visitor, site):
    page = visitor.open("#classes=").page
    assert visitor.text(".count") == "3 of 3 classes"
    page.fill("#search", "onerror")
    assert visitor.text(".count") == "1 of 3 classes"
    page.locator(".class-list a").click()
    page.wait_for_function("() => location.hash.startsWith('#class=')")
    page.wait_for_selector(".wide-layers")
    assert visitor.text("h1") == HOSTILE[0] and HOSTILE[0] in visitor.text("#trail")
    assert page.locator(".wide-layers > section").count() == 2
    assert "F1" in visitor.text("main p") and "flags these held-out images" in visitor.text("section h3")
    first = site.tables[0, 2, 0].classes.query("q.notna()")
    chosen = first[first["class"].str.contains("onerror")].sort_values("mcc_held_out", ascending=False)["latent"]
    listed = page.locator(".wide-layers > section").first.locator("tbody").first.locator("td:first-child a")
    assert [int(text) for text in listed.all_inner_texts()] == chosen.head(6).tolist()
    page.select_option("#which", label="k 4, seed 1")
    page.wait_for_function("() => location.hash.includes('k=4&seed=1')")
    page.locator(".pictures a").first.click()
    page.wait_for_selector(".image-view")
    page.locator("dd a").first.click()
    page.wait_for_selector(".wide-layers")
    page.keyboard.press("u")
    visitor.ready("#classes=")
