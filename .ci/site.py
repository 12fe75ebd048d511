#!/usr/bin/env python3
"""Builds the documentation's site and checks it as readers meet it: `uv run --group docs python .ci/site.py`.

Build and view need no network: every link inside the site leads to a page and an anchor, nothing is loaded from
elsewhere, and the search works on pages that were opened from disk.
"""

import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "site"


class Content(HTMLParser):
    """Collects a page's anchors, its links, and the addresses of all that a browser loads with it."""

    def __init__(self, page: Path):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a":
            self.links.append(values.get("href", ""))
        elif tag == "link" and values.get("rel") in ("canonical", "prev", "next"):
            self.links.append(values["href"])
        else:
            self.loaded += [values[name] for name in ("src", "href", "srcset") if name in values]


def build() -> None:
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    cut = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net"]
    if shutil.which("unshare") and not subprocess.run([*cut, "true"], capture_output=True, check=False).returncode:
        command = [*cut, *command]
    subprocess.run(command, cwd=ROOT, check=True)


def broken() -> list[str]:
    """Returns the links of the built pages that lead nowhere, and what they load from elsewhere."""
    pages = {page.resolve(): Content(page) for page in SITE.rglob("*.html") if page.name != "404.html"}
    wrong = []
    for page, content in pages.items():
        for target in content.links + content.loaded:
            address = urlsplit(target)
            file = (page.parent / unquote(address.path)).resolve() if address.path else page
            outside = bool(address.scheme or address.netloc)
            if (
                (outside and target in content.loaded)
                or (not outside and not file.exists())
                or (not outside and address.fragment and unquote(address.fragment) not in pages[file].anchors)
            ):
                wrong.append(f"{page.relative_to(SITE)}: {target}")
    return wrong


def search(page: Page) -> None:
    """Opens the site from disk, as a reader does, and searches for a word."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((SITE / "index.html").as_uri())
    page.keyboard.press("/")
    page.wait_for_timeout(500)
    page.keyboard.type("monosemanticity", delay=20)
    page.get_by_text("Monosemanticity", exact=True).first.wait_for()
    elsewhere = [url for url in asked if not url.startswith(("file:", "data:"))]
    assert not elsewhere, elsewhere


if __name__ == "__main__":
    build()
    if wrong := broken():
        sys.exit("\n".join(wrong))
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        search(chromium.new_page())
        chromium.close()
    print(f"{len([*SITE.rglob('*.html')])} pages, {sum(f.stat().st_size for f in SITE.rglob('*')) / 1e6:.1f} MB")
