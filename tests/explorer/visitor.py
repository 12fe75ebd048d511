"""A visitor of the explorer, in Chromium."""

from __future__ import annotations

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
POINT = (0, 4, 0)


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


def plotted(visitor):
    """Waits until every chart has been drawn; returns how many there are."""
    visitor.page.wait_for_function(
        "() => { const p = [...document.querySelectorAll('.plot')]; return p.every((e) => e.querySelector('canvas')) }"
    )
    return visitor.page.locator(".plot canvas").count()


def loudest(site):
    latents = site.tables[POINT].latents
    return int(latents["max_activation"].idxmax())
