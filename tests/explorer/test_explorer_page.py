"""The explorer in a real Chromium, from disk: what a person sees and does, on images with hostile names."""

import csv
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pandas as pd
import pytest
from explorer_site import HOSTILE, LATENTS, build

from sae.evidence.measures import MEASURES, Measure
from sae.explorer import page as pages
from sae.explorer import parts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
POINT = (0, 4, 0)
# Elements whose text has a lower contrast with its background than WCAG's 4.5 to 1.
POOR_CONTRAST = """() => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((c) => linear(c / 255));
    const light = (text) => rgb(text).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const clear = (colour) => /, 0\\)|transparent/.test(colour);
    const colour = (e) => getComputedStyle(e).backgroundColor;
    const behind = (e) => (clear(colour(e)) && e.parentElement ? behind(e.parentElement) : colour(e));
    const hasText = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const seen = [...document.querySelectorAll("main *, header *")].filter((e) => hasText(e) && e.checkVisibility());
    return seen.filter((e) => {
        const [high, low] = [light(getComputedStyle(e).color), light(behind(e))].sort((a, b) => b - a);
        return (high + 0.05) / (low + 0.05) < 4.5;
    }).map((e) => e.outerHTML.slice(0, 120));
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build(tmp_path_factory.mktemp("site <&'"))  # the folder's own name needs escaping too


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield started
        started.close()


class Visitor:
    """A page of its own, that remembers all it complained of and all it loaded."""

    def __init__(self, page, site):
        self.page, self.site = page, site
        self.complaints, self.loaded = [], []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.loaded.append(request.url))
        page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        page.add_init_script("window.boom = () => { window.exploded = true }")

    def open(self, link=""):
        self.page.goto("about:blank")
        self.page.goto(self.site.url + link)
        self.ready(link or "#")
        return self

    def ready(self, link):
        self.page.wait_for_function("(link) => document.getElementById('main').dataset.ready === link", arg=link)

    def text(self, selector):
        return self.page.locator(selector).first.inner_text()

    def rows(self):
        return [
            int(r) for r in self.page.locator("tbody tr[data-row]").evaluate_all("rs => rs.map(r => r.dataset.row)")
        ]


@pytest.fixture
def visitor(browser, site):
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    made = Visitor(context.new_page(), site)
    yield made
    context.close()
    assert made.complaints == []
    assert all(url.startswith(("file://", "about:", "data:", "blob:")) for url in made.loaded)


def plotted(visitor):
    """Waits until every chart has been drawn; returns how many there are."""
    visitor.page.wait_for_function(
        "() => { const p = [...document.querySelectorAll('.plot')]; return p.every((e) => e.querySelector('canvas')) }"
    )
    return visitor.page.locator(".plot canvas").count()


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


def loudest(site):
    latents = site.tables[POINT].latents
    return int(latents["max_activation"].idxmax())


def test_heat_maps_lie_where_the_latent_fires_and_boxes_where_the_table_says(visitor, site):
    latent = loudest(site)
    page = visitor.open(f"#layer=0&k=4&seed=0&latent={latent}").page
    images = site.tables[POINT].images
    rows = images[(images["latent"] == latent) & (images["panel"] == "top")].sort_values("rank")
    x = site.codes[POINT].of(rows["image_id"])
    fires = x.z[:, [latent]].toarray().reshape(len(rows), 16)
    place_of = {image: place for place, image in enumerate(x.ids)}
    shown = page.locator("[data-panel=top] .picture")
    assert shown.count() == len(rows)
    for place, row in enumerate(rows.itertuples()):
        seen = shown.nth(place).evaluate(
            """figure => {
                const canvas = figure.querySelector("canvas");
                const { data } = canvas.getContext("2d").getImageData(0, 0, 4, 4);
                const frame = figure.querySelector(".frame").getBoundingClientRect();
                const [box, map] = [figure.querySelector(".box"), canvas].map((e) => e.getBoundingClientRect());
                const middle = [box.top + box.height / 2 - frame.top, box.left + box.width / 2 - frame.left];
                return { alpha: [...data.filter((_, i) => i % 4 === 3)],
                         cell: middle.map((m) => m / frame.width * 4),
                         covers: map.width / frame.width, src: figure.querySelector("img").getAttribute("src") };
            }"""
        )
        z = fires[place_of[row.image_id]]
        expected = np.where(z > 0, 0.35 + 0.65 * z / rows["activation"].max(), 0)
        assert np.array(seen["alpha"]) / 255 == pytest.approx(expected, abs=0.006)
        assert ((np.array(seen["alpha"]) > 0) == (z > 0)).all()
        assert z[row.token_row * 4 + row.token_col] == pytest.approx(z.max())
        assert seen["cell"] == pytest.approx([row.token_row + 0.5, row.token_col + 0.5], abs=0.05)
        assert seen["covers"] == pytest.approx(1) and seen["src"] == f"pictures/{row.image_id}.webp"
        assert f"{row.activation:.3g}" in shown.nth(place).inner_text()
    assert page.locator("[data-panel=silent] canvas").count() == 0


def test_pictures_load_and_maps_can_be_dimmed_and_switched_off(visitor, site):
    page = visitor.open(f"#layer=0&k=4&seed=0&latent={loudest(site)}").page
    page.wait_for_function("() => document.querySelector('.picture img').naturalWidth === 64")
    opacity = "getComputedStyle(document.querySelector('canvas.heat')).opacity"
    assert float(page.evaluate(opacity)) == 0.75
    page.locator("input[type=range]").fill("0.3")
    assert float(page.evaluate(opacity)) == pytest.approx(0.3)
    page.keyboard.press("Tab")
    page.locator("main").focus()
    page.keyboard.press("h")
    assert float(page.evaluate(opacity)) == 0
    page.locator("input.heat-on").check()
    assert float(page.evaluate(opacity)) == pytest.approx(0.3)


def test_a_latents_page_tells_all_that_is_known(visitor, site):
    known = site.tables[POINT]
    interventions, images = known.interventions.set_index("latent"), known.images
    latent = next(i for i in interventions.index if "silent" in images.loc[images["latent"] == i, "panel"].array)
    visitor.open(f"#layer=0&k=4&seed=0&latent={latent}")
    assert plotted(visitor) == 3  # the histogram, the measured and the estimated effects
    titles = visitor.page.locator("h2, h3").all_inner_texts()
    panels = {
        "Strongest images",
        "Around its median",
        "Around its lower quartile",
        "Random images on which it is silent",
    }
    evidence = {"How strongly it fires", "Classes", "Effect on the ViT: measured", "Effect on the ViT: estimated"}
    assert panels | evidence | {"Nearest in this SAE", "Counterparts elsewhere"} <= {*titles}
    assert visitor.page.locator(".checks li").count() == 4
    table = visitor.text("table.plain")
    assert "train" in table and "held out" in table and " to " in table
    text = visitor.text("main")
    assert f"{interventions.at[latent, 'images']} held-out images on which it is strongest" in text


def test_a_latent_shows_its_causes_and_its_effects(visitor, site):
    table = site.tables[0, 4, 0].edges
    (_, source, *_), (first, _, target, _) = table["latent"], table["target"]
    visitor.open(f"#layer=0&k=4&seed=0&latent={source}")
    text = visitor.text("main").replace("\xa0", " ")
    assert "Strongest effects in layer 1" in text and "Strongest causes" not in text
    assert f"latent {target} 40 % estimated, a random direction 5 %" in text
    assert f"latent {first} -20 % estimated, measured -10 %, a random direction 5 %" in text
    visitor.page.locator("ul.links").last.get_by_role("link", name=f"latent {target}", exact=True).click()
    visitor.page.wait_for_function(f"document.querySelector('h1')?.textContent === 'Latent {target}'")
    text = visitor.text("main").replace("\xa0", " ")
    assert "Strongest causes in layer 0" in text and f"latent {source} 40 % estimated" in text


def test_links_lead_to_neighbours_relatives_and_back(visitor, site):
    latent = loudest(site)
    page = visitor.open(f"#layer=0&k=4&seed=0&latent={latent}").page
    links = page.locator("ul.links a").evaluate_all("as => as.map(a => a.getAttribute('href'))")
    assert any("seed=1" in link for link in links) and any("latent=" in link for link in links)
    kinds = {link.split("latent=")[0]: link for link in links}  # one of each point
    assert len(kinds) > 2
    for link in kinds.values():
        visitor.open(link)
        assert visitor.text("h1") == f"Latent {link.split('latent=')[1]}"
    visitor.open(f"#layer=0&k=4&seed=0&latent={latent}")
    page.locator("#trail a").nth(1).click()
    visitor.ready("#layer=0&k=4&seed=0")


def test_a_latent_has_its_match_in_another_experiment_if_one_was_compared(visitor, site, tmp_path):
    latent = loudest(site)
    link, title = f"#layer=0&k=4&seed=0&latent={latent}", "In the experiment twin"
    visitor.open(link)
    text = visitor.text("main").replace("\xa0", " ")
    assert title in text and f"layer 0, k 4, topk, seed 0: latent {latent} r = 1, shuffled images 0." in text
    folder = tmp_path / "copy"
    shutil.copytree(site.folder, folder)
    file = folder / "data/compare/layer=0/k=4/method=topk/seed=0.js"
    given = file.read_text()

    def shown():
        visitor.page.goto("about:blank")
        visitor.page.goto((folder / "index.html").as_uri() + link)
        visitor.ready(link)
        return visitor.text("main")

    file.write_text(given.replace('"explorer":null', '"explorer":"../../two/explorer/index.html"'))
    assert title in shown()
    target = f"layer=0&k=4&method=topk&seed=0&latent={latent}"
    assert visitor.page.locator(f'a[href="../../two/explorer/index.html#{target}"]').count() == 1
    file.write_text(re.sub(r'"fvu":[\d.]+', '"fvu":0.5', given))  # this SAE was trained again since
    assert title not in shown()
    file.unlink()
    assert title not in shown() and "Counterparts elsewhere" in visitor.text("main")
    assert all("ERR_FILE_NOT_FOUND" in text for text in visitor.complaints)
    visitor.complaints.clear()


def test_keys_walk_in_the_order_of_the_table(visitor, site):
    page = visitor.open("#layer=0&k=4&seed=0&sort=-density").page
    order = visitor.rows()[:3]
    page.locator(f"tr[data-row='{order[0]}'] a").click()
    visitor.ready(f"#layer=0&k=4&seed=0&latent={order[0]}")
    for key, latent in (("ArrowRight", order[1]), ("ArrowRight", order[2]), ("ArrowLeft", order[1])):
        before = page.evaluate("document.getElementById('main').dataset.ready")
        page.keyboard.press(key)
        page.wait_for_function("(was) => document.getElementById('main').dataset.ready !== was", arg=before)
        assert visitor.text("h1") == f"Latent {latent}"
    page.keyboard.press("u")
    visitor.ready("#layer=0&k=4&seed=0")
    page.keyboard.press("g")
    visitor.ready("#")


def test_a_view_that_was_left_does_not_touch_the_address(visitor):
    page = visitor.page
    page.add_init_script(
        """window.held = [];  // charts that wait to be drawn
        Object.defineProperty(window, "vegaEmbed", {
            set(embed) { this.embed = embed },
            get() { return (...all) => new Promise((go) => held.push(go)).then(() => this.embed(...all)) },
        });"""
    )
    visitor.open("#layer=0&k=4&seed=0")
    page.wait_for_function("held.length === 1")
    page.evaluate("location.hash = '#layer=0&k=4&seed=0&latent=5'")
    visitor.ready("#layer=0&k=4&seed=0&latent=5")
    page.evaluate("held[0]()")  # the chart of the view that was left
    page.wait_for_timeout(300)
    assert page.evaluate("location.hash") == "#layer=0&k=4&seed=0&latent=5"
    page.go_back()
    visitor.ready("#layer=0&k=4&seed=0")


def test_a_slow_view_that_was_overtaken_does_not_either(visitor):
    page = visitor.open().page
    page.evaluate(
        """() => {
            const load = parts.load;
            const late = (name) => new Promise((go) => (window.come = go)).then(() => load(name));
            parts.load = (name) => (name.endsWith("/table") ? late(name) : load(name));
        }"""
    )
    page.evaluate("location.hash = '#layer=0&k=4&seed=0'")
    page.wait_for_function("window.come !== undefined")
    page.evaluate("location.hash = '#images='")
    visitor.ready("#images=")
    page.evaluate("come()")
    page.wait_for_timeout(300)
    assert page.evaluate("location.hash") == "#images=" and visitor.text("h1") == "Images"


def test_the_keyboard_stays_where_it_is(visitor):
    page = visitor.open("#layer=0&k=4&seed=0").page
    page.get_by_role("button", name="density", exact=True).focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "density ▼"
    page.keyboard.press("ArrowDown")
    box = page.locator(".scroll")
    row = page.locator(f"#{box.get_attribute('aria-activedescendant')}")
    assert row.get_attribute("aria-selected") == "true" and row.get_attribute("class") == "active"
    visitor.open()
    page.locator("#metric").focus()
    for _ in range(2):  # a closed list: each press shows the next measure
        page.keyboard.press("ArrowDown")
        page.wait_for_function("() => document.getElementById('main').dataset.ready === (location.hash || '#')")
    third = page.locator("#metric option").nth(2).get_attribute("value")
    assert page.evaluate("[document.activeElement.id, location.hash]") == ["metric", f"#metric={third}"]


def test_a_link_opened_in_another_tab_leaves_this_one(visitor):
    page = visitor.open("#layer=0&k=4&seed=0").page
    with page.context.expect_page() as other:
        page.locator("tbody tr[data-row] a").first.click(modifiers=["Control"])
    assert "latent=" in other.value.url and "latent=" not in page.url


def test_a_random_latent_is_an_interesting_one(visitor, site):
    latents = site.tables[POINT].latents
    page = visitor.open("#layer=0&k=4&seed=0&latent=0").page
    for _ in range(5):
        page.evaluate("document.getElementById('main').dataset.ready = ''")
        page.evaluate("location.hash = '#layer=0&k=4&seed=0&latent=0&again=' + Math.random()")
        page.wait_for_function("() => document.getElementById('main').dataset.ready !== ''")
        page.keyboard.press("r")
        page.wait_for_function("() => !location.hash.includes('again')")
        fact = latents.loc[int(page.evaluate("location.hash").split("latent=")[1])]
        assert fact["status"] == "alive" and not fact["token_type"]
        assert fact["confirmed"] or fact["stability_correlation"] >= 0.5


def test_a_dead_latent_says_so_and_shows_nothing(visitor, site):
    latents = site.tables[1, 2, 0].latents
    dead = latents.index[latents["status"] == "dead"][0]
    page = visitor.open(f"#layer=1&k=2&seed=0&latent={dead}").page
    assert visitor.text("#headline").startswith("Dead")
    assert page.locator(".picture").count() == 0


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


def test_hostile_names_stay_text(visitor, site):
    latent = loudest(site)
    for link in ("", "#layer=0&k=4&seed=0", f"#layer=0&k=4&seed=0&latent={latent}", "#images=", "#image=1",
                 "#classes=", "#class=0", "#class=%3Cb%3E",
                 "#layer=%3Cimg%20src%3Dx%20onerror%3Dboom()%3E", "#image=%3Cb%3E", "#metric=__proto__",
                 "#layer=0&k=4&seed=0&search=%3Cimg%20src%3Dx%20onerror%3Dboom()%3E"):  # fmt: skip
        page = visitor.open(link).page
        assert page.locator("main h1").count() == 1
        assert page.locator("img[src='x'], main script, main b b").count() == 0
    page = visitor.open("#images=").page
    page.locator(".picture img").first.hover()
    shown = page.locator("main").inner_text()
    assert HOSTILE[0] in shown and HOSTILE[2] in shown
    visitor.open("#layer=0&k=4&seed=0")
    plotted(visitor)
    box = page.locator(".plot canvas").bounding_box()
    for x in np.linspace(0.1, 0.85, 12):  # tooltips of the chart hold class names
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * 0.4)
    assert page.evaluate("window.exploded") is None


@pytest.mark.parametrize(
    "link", ["#layer=7&k=4", "#layer=0&k=4&latent=4000", "#layer=0&k=4&latent=x", "#image=99999", "#class=9"]
)
def test_a_link_to_nothing_says_what_there_is(visitor, link):
    visitor.open(link)
    assert visitor.text("h1") == "Not here"
    assert visitor.page.get_by_role("link", name="To the grid").is_visible()


def test_a_missing_part_is_explained(visitor, site, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(site.folder, folder)
    shutil.rmtree(folder / "data" / "layer=0")
    visitor.page.goto((folder / "index.html").as_uri() + "#layer=0&k=4&seed=0")
    visitor.page.wait_for_selector(".error")
    assert "copy the whole explorer folder" in visitor.text(".error")
    assert all("ERR_FILE_NOT_FOUND" in text for text in visitor.complaints)
    visitor.complaints.clear()


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_every_view_fits_the_screen_and_can_be_read(browser, site, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    made = Visitor(context.new_page(), site)
    latent = f"#layer=0&k=4&seed=0&latent={loudest(site)}"
    for link in ("", "#layer=0&k=4&seed=0", latent, "#images=", "#image=1", "#classes=", "#class=1"):
        page = made.open(link).page
        plotted(made)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, link
        assert page.evaluate(POOR_CONTRAST) == [], link
    assert made.complaints == []
    context.close()


def test_the_theme_can_be_changed_and_help_is_there(visitor):
    page = visitor.open().page
    paper = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(paper)
    page.click("#theme")
    assert page.evaluate(paper) != before
    page.locator("main").focus()
    page.keyboard.press("?")
    assert page.locator("dialog[open] kbd").count() >= 8
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_every_column_and_number_has_an_explanation(visitor):
    page = visitor.open("#layer=0&k=4&seed=0").page
    titles = page.locator(".latents thead button").evaluate_all("bs => bs.map(b => b.title)")
    assert len(titles) >= 8 and all(len(t) > 20 for t in titles)
    assert page.locator(".numbers dl > div[title]").count() == page.locator(".numbers dl > div").count() > 8
    assert page.locator(".chip[title]").count() == page.locator(".chip").count() == 6


def test_small_functions(visitor):
    page = visitor.open().page

    def js(code, argument=None):
        return page.evaluate(code, argument)

    assert (
        js("() => core.csv([['a', 'b,c', 'say \"x\"'], [1, null, '=1+1']])") == 'a,"b,c","say ""x"""\r\n1,,\'=1+1\r\n'
    )
    assert js("() => core.csv([[-1.5, '-x', '@y', 'plain']])") == "-1.5,'-x,'@y,plain\r\n"
    link = {"layer": "6", "search": "a&b=c #1", "patch": "3,4"}
    assert js("(l) => core.link.read(core.link.write(l))", link) == link
    assert js("() => core.link.write({a: 1, b: undefined, c: ''})") == "#a=1"
    grids = [
        {"tokens": t, "geometry": {"prefix": ["class", "register", "register"]}} for t in ("all", "class", "patches")
    ]
    assert js("(grids) => grids.map(images.prefixNames)", grids) == [
        ["class", "register 1", "register 2"],
        ["class"],
        [],
    ]
    assert js("() => [0, 1].map(core.viridis)") == [[68, 1, 84], [253, 231, 37]]
    assert js("() => parts.unpack('AQACAA==', 2)") == [1, 2]
    shares = js("() => [0.00004, 0.5, 1, null].map((v) => core.show(v, 'share'))")
    assert shares == ["<0.01\u00a0%", "50\u00a0%", "100\u00a0%", "–"]
    assert js("async () => [...tables.readFilters(await parts.load('grid'), 'dead,-dense,nonsense')]") == [
        ["dead", True],
        ["dense", False],
    ]
    assert js("() => parts.spread([2, 0, 1], [5, 6, 7], [1, 2, 3]).map((s) => s.places)") == [[5, 6], [], [7]]
    table = {"latent": [0, 1, 2, 3], "alive": [1, 1, 0, 1], "density": [0.3, 0.01, 0, 0.05], "names": ["b", "a"],
             "class": [0, 1, -1, -1], "mcc": [0.5, 0.7, None, 0.1],
             "token_types": ["border"], "token_type": [-1, -1, -1, 0], "stability": [0.9, None, None, 0.1]}  # fmt: skip
    chosen = """async ([t, o]) =>
        tables.select(await parts.load("grid"), t, { ...o, filters: new Map(o.filters ?? []) })"""
    assert js(chosen, [table, {"sort": "-mcc"}]) == [1, 0, 3, 2]  # what is not known comes last
    assert js(chosen, [table, {"sort": "mcc"}]) == [3, 0, 1, 2]
    assert js(chosen, [table, {"sort": "class"}]) == [1, 0, 2, 3]
    assert js(chosen, [table, {"filters": [["dense", False], ["dead", False]]}]) == [1, 3]
    assert js(chosen, [table, {"filters": [["position-driven", True]]}]) == [3]
    assert js(chosen, [table, {"filters": [["no confirmed class", True]]}]) == [2, 3]
    assert js(chosen, [table, {"filters": [["unstable", True]]}]) == [3]  # an unknown stability is not a low one
    assert js(chosen, [table, {"search": " B "}]) == [0]
    assert js(chosen, [table, {"search": "#3"}]) == [3]
    assert js(chosen, [table, {"brush": {"density": [0.02, 1], "mcc": [0, 0.3]}}]) == [3]
