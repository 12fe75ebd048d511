"""The explorer in a real Chromium, from disk: what a person sees and does, on images with hostile names."""

import shutil

import numpy as np
import pytest
from explorer_site import HOSTILE
from visitor import NEEDS_CHROMIUM, Visitor, loudest, plotted

pytest_plugins = ["explorer_fixtures"]
pytestmark = NEEDS_CHROMIUM

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
