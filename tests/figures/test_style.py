"""One style for all figures, which leaves a notebook's own settings alone."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pandas as pd
import pytest

from sae.figures import conclusion, style
from sae.figures.inputs import training

LOG = pd.DataFrame({"tokens": [1, 2e6], "fvu": [1, 0.1], "l0": [4, 4], "dead": [0, 0.25], "lr": [0.1, 0.2]})


def test_a_notebooks_settings_stay_as_they_are(tmp_path):
    before = matplotlib.rcParams.copy()
    figure = training(LOG, "title")
    style.save(figure, tmp_path / "a.svg")
    assert matplotlib.rcParams.copy() == before
    assert not figure.axes[0].spines["top"].get_visible()  # although the style held while it was drawn


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_with_any_characters_give_an_svg_that_can_be_read(tmp_path):
    style.save(training(LOG, "<script>\x1b\b &amp;\uffff $x"), tmp_path / "a.svg")
    drawn = "".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
    assert "<script>\ufffd\ufffd &amp;\ufffd $x" in drawn


def test_the_same_table_gives_the_same_file(tmp_path):
    for name in ("a", "b"):
        style.save(training(LOG, "title"), tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    style.save(training(LOG, "title"), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_no_figure_waits_for_torch():
    modules = ", ".join(f"sae.figures.{path.stem}" for path in Path(conclusion.__file__).parent.glob("[a-z]*.py"))
    code = f"import sys, {modules}; print({{'torch', 'timm', 'matplotlib.pyplot'}} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_layer_and_a_k_have_one_colour_in_every_figure():
    layers, ks = (style.colours(kind, [11, 0, 6]) for kind in ("layer", "k"))
    assert list(layers) == [0, 6, 11] and tuple(layers[0]) != tuple(ks[0])
    light = [sum(c[:3]) for c in layers.values()]
    assert light == sorted(light) and light[-1] < 2.2  # told apart when printed in grey, and never white on white
