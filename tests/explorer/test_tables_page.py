"""The explorer's grid, tables and charts."""

import csv
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

import pandas as pd
import pytest
from explorer_site import LATENTS
from visitor import NEEDS_CHROMIUM, POINT, plotted

from sae.evidence.measures import MEASURES, Measure
from sae.explorer import page as pages
from sae.explorer import parts

pytest_plugins = ["explorer_fixtures"]
pytestmark = NEEDS_CHROMIUM


def test_the_first_view_is_the_grid_and_small(visitor, site):
    page = visitor.open().page
    assert plotted(visitor) == 2
    cells = page.locator(".saes td a")
    assert cells.count() == 8 and page.locator(".baselines td").count() == 4
    fvu = site.metrics.set_index(["method", "layer", "k", "seed"])["fvu"]
    assert float(cells.first.inner_text().rstrip("% \u00a0")) == pytest.approx(100 * fvu["topk", 0, 2, 0], rel=0.01)
    paths = {Path(unquote(urlparse(url).path)) for url in visitor.loaded if url.startswith("file://")}
    assert sum(path.stat().st_size for path in paths) < 3e6
    assert not any({"latents", "images"} & {*path.parent.parts} for path in paths)  # parts come on demand


def test_another_measure_colours_the_map_and_has_a_link(visitor, site):
    page = visitor.open().page
    page.select_option("#metric", "stability")
    visitor.ready("#metric=stability")
    assert "another seed" in visitor.text(".about")
    assert "interval" in page.locator(".saes td").first.get_attribute("title")
    page.locator(".saes td a").nth(1).click()
    visitor.ready("#layer=0&k=4&seed=0")
    assert visitor.text("h1") == "SAE at layer 0, k 4, seed 0"


def test_every_measure_of_the_grid_can_be_chosen_and_is_explained(visitor):
    page = visitor.open().page
    for key in page.locator("#metric option").evaluate_all("os => os.map(o => o.value)"):
        page.select_option("#metric", key)
        visitor.ready(f"#metric={key}")
        assert len(visitor.text(".about")) > 30
        assert plotted(visitor) == 2


def test_a_measure_in_the_registry_is_on_the_page(visitor, site, tmp_path, monkeypatch):
    novelty = Measure("novelty", "novelty of the latents", "A measure that no script of the page names.", unit="share")
    monkeypatch.setitem(MEASURES, "novelty", novelty)
    folder = tmp_path / "copy"
    shutil.copytree(site.folder, folder, ignore=shutil.ignore_patterns("pictures"))
    facts = {"name": "new", "model": "vit", "tokens": "patches"}
    facts["geometry"] = {
        "blocks": 2,
        "width": 192,
        "prefix": ["class"],
        "patches": [4, 4],
        "side": [64, 64],
        "outputs": 3,
    }
    metrics = site.metrics.assign(novelty=0.25)
    parts.write(folder / "data", "grid", pages.grid(metrics, pd.DataFrame(), ["topk"], [], facts))
    visitor.page.goto((folder / "index.html").as_uri() + "#metric=novelty")
    visitor.ready("#metric=novelty")
    assert visitor.text(".about") == novelty.sentence and plotted(visitor) == 2
    assert visitor.text(".saes td a") == "25\u00a0%"
    visitor.page.locator(".saes td a").first.click()
    visitor.page.wait_for_selector(".numbers")
    titles = visitor.page.locator(".numbers dl > div").evaluate_all("ds => ds.map(d => d.title)")
    assert novelty.sentence in titles


def test_the_table_sorts_by_every_column(visitor, site):
    page = visitor.open("#layer=0&k=4&seed=0").page
    latents = site.tables[POINT].latents
    for name, column in {"density": "frequency_held_out", "stability": "stability_correlation"}.items():
        page.get_by_role("button", name=name, exact=True).click()
        first = visitor.rows()[0]
        assert latents.at[first, column] == pytest.approx(latents[column].max(), rel=0.01)
        assert page.locator("th[aria-sort=descending]").inner_text().startswith(name)
        page.get_by_role("button", name=re.compile(f"^{name}")).click()
        assert latents.at[visitor.rows()[0], column] == pytest.approx(latents[column].min(), rel=0.01, abs=1e-3)
    shown = visitor.page.evaluate("location.hash")
    assert "sort=stability" in shown
    order = visitor.rows()
    visitor.open(shown)  # the link shows the same
    assert visitor.rows() == order


def test_only_rows_in_sight_exist_and_the_keys_move_through_all(visitor):
    page = visitor.open("#layer=0&k=4&seed=0&sort=latent").page
    assert len(visitor.rows()) < LATENTS
    page.locator(".scroll").focus()
    page.keyboard.press("End")
    assert page.locator("tr.active").get_attribute("data-row") == str(LATENTS - 1)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    visitor.ready(f"#layer=0&k=4&seed=0&latent={LATENTS - 2}")


def test_filters_and_search(visitor, site):
    latents = site.tables[1, 2, 0].latents
    dead = set(latents.loc[latents["status"] == "dead", "latent"])
    page = visitor.open("#layer=1&k=2&seed=0&sort=latent").page
    chip = page.get_by_role("button", name=re.compile(r"dead \("))
    assert f"({len(dead)})" in chip.inner_text()
    chip.click()
    assert set(visitor.rows()) == dead and chip.get_attribute("aria-pressed") == "true"
    chip.click()
    assert visitor.text(".count").startswith(f"{LATENTS - len(dead)} of {LATENTS}")
    visitor.open(page.evaluate("location.hash"))
    assert visitor.text(".count").startswith(f"{LATENTS - len(dead)} of {LATENTS}")
    page.fill("#search", "17")
    assert visitor.rows() == ([17] if 17 not in dead else [])
    page.get_by_role("button", name=re.compile(r"not dead")).click()
    page.fill("#search", "ONERROR")
    named = latents["top_name"].str.contains("onerror").eq(True)
    assert visitor.rows() == latents.loc[named, "latent"].tolist()
    page.fill("#search", "nothing has this name")
    assert visitor.rows() == []


@pytest.mark.parametrize("name", ["dense", "position-driven", "unstable", "no confirmed class"])
def test_each_filter_keeps_what_its_column_says(visitor, site, name):
    latents = site.tables[POINT].latents
    kept = {
        "dense": latents["frequency_held_out"] > 0.1,
        "position-driven": latents["token_type"].isin(["position", "border"]),
        "unstable": latents["stability_correlation"] < 0.5,
        "no confirmed class": ~latents["confirmed"],
    }[name]
    visitor.open(f"#layer=0&k=4&seed=0&filter={name.replace(' ', '+')}")
    assert visitor.text(".count").startswith(f"{kept.sum()} of {LATENTS}")


def test_brushing_the_scatter_chooses_rows(visitor, site):
    page = visitor.open("#layer=0&k=4&seed=0").page
    plotted(visitor)
    before = visitor.text(".count")
    box = page.locator(".plot canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.86, box["y"] + box["height"] * 0.8, steps=6)
    page.mouse.up()
    page.wait_for_function("(text) => document.querySelector('.count').textContent !== text", arg=before)
    density = site.tables[POINT].latents["frequency_held_out"]
    chosen = visitor.rows()
    assert 0 < len(chosen) < LATENTS
    assert density[chosen].min() > density[density > 0].min()
    page.get_by_role("button", name="clear the brush").click()
    assert visitor.text(".count") == before


def test_the_table_is_saved_as_csv(visitor, site):
    page = visitor.open("#layer=0&k=4&seed=0&filter=-dead&sort=latent").page
    with page.expect_download() as saved:
        page.get_by_role("button", name="save this table as CSV").click()
    with open(saved.value.path(), newline="") as file:  # noqa: PTH123
        rows = list(csv.DictReader(file))
    latents = site.tables[POINT].latents
    assert [int(r["latent"]) for r in rows] == latents.loc[latents["status"] == "alive", "latent"].tolist()
    for row in rows:
        name = latents.at[int(row["latent"]), "top_name"]
        wanted = "" if pd.isna(name) else f"'{name}" if name.startswith("=") else name
        assert row["class"] == wanted  # whatever quotes and commas it holds; a formula is text


@pytest.mark.parametrize("link", ["", "#layer=0&k=4&seed=0", "#layer=0&k=4&seed=0&latent={}"])
def test_nothing_moves_when_charts_are_drawn(visitor, site, link):
    visitor.page.add_init_script(
        """window.moved = 0;
        new PerformanceObserver((list) => { for (const entry of list.getEntries()) window.moved += entry.value })
            .observe({ type: "layout-shift", buffered: true });"""
    )
    visitor.open(link.format(int(site.tables[POINT].interventions["latent"].iloc[0])))
    assert plotted(visitor) > 0
    visitor.page.evaluate("() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))")
    assert visitor.page.evaluate("window.moved") < 0.02  # of the viewport's area and height, as browsers count it


def test_a_chart_is_saved_as_svg(visitor):
    page = visitor.open().page
    plotted(visitor)
    with page.expect_download() as saved:
        page.get_by_role("button", name="save SVG").first.click()
    text = open(saved.value.path()).read()  # noqa: PTH123, SIM115
    assert text.startswith("<svg") and "Reconstruction against sparsity" in text
