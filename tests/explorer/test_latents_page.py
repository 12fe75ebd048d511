"""The explorer's page of a latent."""

import re
import shutil

import numpy as np
import pytest
from visitor import NEEDS_CHROMIUM, POINT, loudest, plotted

pytest_plugins = ["explorer_fixtures"]
pytestmark = NEEDS_CHROMIUM


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
