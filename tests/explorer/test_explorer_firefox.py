"""The explorer in Firefox, from disk."""

import json
import shutil
import socket
import subprocess
import time

import pytest
from explorer_site import build

FIREFOX = shutil.which("firefox") or shutil.which("firefox-esr")


class Firefox:
    """Firefox without a screen, through Marionette, the remote control that is built into it."""

    def __init__(self, profile):
        (profile / "user.js").write_text('user_pref("marionette.port", 0);\n')
        command = [FIREFOX, "--headless", "--no-remote", "--marionette", "--profile", str(profile)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port, patience = profile / "MarionetteActivePort", time.monotonic() + 60
        while not (port.exists() and port.read_text().strip()) and time.monotonic() < patience:
            time.sleep(0.1)
        self._socket = socket.create_connection(("127.0.0.1", int(port.read_text())), timeout=60)
        self._receive()
        self.call("WebDriver:NewSession", {})

    def _receive(self):
        size = b""
        while not size.endswith(b":"):
            size += self._socket.recv(1)
        text = b""
        while len(text) < int(size[:-1]):
            text += self._socket.recv(int(size[:-1]) - len(text))
        return json.loads(text)

    def call(self, name, arguments):
        message = json.dumps([0, 1, name, arguments])
        self._socket.sendall(f"{len(message.encode())}:{message}".encode())
        _kind, _number, error, result = self._receive()
        assert error is None, error
        return result.get("value") if isinstance(result, dict) else result

    def wait(self, condition):
        """Returns the condition's first true value."""
        patience = time.monotonic() + 30
        while not (value := self.call("WebDriver:ExecuteScript", {"script": f"return {condition}", "args": []})):
            assert time.monotonic() < patience, condition
            time.sleep(0.05)
        return value

    def close(self):
        self._process.kill()
        self._process.wait()


@pytest.mark.skipif(FIREFOX is None, reason="needs Firefox")
def test_firefox_shows_every_view_from_disk_too(tmp_path):
    site = build(tmp_path)
    latent = int(site.tables[0, 4, 0].latents["max_activation"].idxmax())
    (tmp_path / "profile").mkdir()
    firefox = Firefox(tmp_path / "profile")
    try:
        views = {"": "Latents of vit", "#layer=0&k=4&seed=0": "SAE at layer 0, k 4, seed 0"}
        views |= {f"#layer=0&k=4&seed=0&latent={latent}": f"Latent {latent}", "#images=": "Images"}
        views |= {"#classes=": "Classes", "#class=1": None, "#image=1": None}  # named by labels
        for link, title in views.items():
            firefox.call("WebDriver:Navigate", {"url": "about:blank"})
            firefox.call("WebDriver:Navigate", {"url": site.url + link})
            assert firefox.wait("document.getElementById('main').dataset.ready") == (link or "#")
            heading = firefox.wait("document.querySelector('h1').textContent")
            assert title in (heading, None) and heading not in ("Not here", "This cannot be shown")
            firefox.wait("[...document.querySelectorAll('.plot')].every((e) => e.querySelector('canvas'))")
            firefox.wait("![...document.images].some((i) => i.getBoundingClientRect().top < 300 && !i.naturalWidth)")
            assert firefox.wait("document.querySelectorAll('.error').length + 1") == 1
    finally:
        firefox.close()
