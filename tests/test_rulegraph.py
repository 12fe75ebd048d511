"""The picture of the rules shows the rules as they are."""

import html
import re

import rulegraph
from conftest import snakemake


def test_the_picture_is_up_to_date(tmp_path):
    done = snakemake(tmp_path, "--rulegraph", cores=None)
    graph = rulegraph.dot(done.stdout)
    wanted = set(re.findall(r'^("[^"]+"(?: -> "[^"]+")?)', graph, re.M))
    titles = map(html.unescape, re.findall(r"<title>(.*?)</title>", rulegraph.PICTURE.read_text()))
    shown = {" -> ".join(f'"{name}"' for name in title.split("->")) for title in titles} - {'"rules"'}
    assert shown == wanted, "run: uv run python docs/rulegraph.py"
    assert {'"train" -> "measure"', '"across_ks" -> "explorer_point"'} < shown
