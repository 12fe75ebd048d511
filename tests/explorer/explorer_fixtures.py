"""The explorer of a small experiment, and a browser to visit it with."""

import pytest
from explorer_site import build
from visitor import CHROMIUM, Visitor


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    return build(tmp_path_factory.mktemp("site <&'"))  # the folder's own name needs escaping too


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield started
        started.close()


@pytest.fixture
def visitor(browser, site):
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    made = Visitor(context.new_page(), site)
    yield made
    context.close()
    assert made.complaints == []
    assert all(url.startswith(("file://", "about:", "data:", "blob:")) for url in made.loaded)
