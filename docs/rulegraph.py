"""Draws docs/pictures/rulegraph.svg, the rules of the default experiment: uv run python docs/rulegraph.py"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs/pictures/rulegraph.svg"
# A colour for each file of rules.
COLOURS = {
    "data": "#d9e7f7",
    "activations": "#dff0df",
    "training": "#fdf3cf",
    "analysis": "#fbe3d3",
    "report": "#eeeeee",
    "explorer": "#e9dff5",
}
STYLE = """rankdir=LR; ranksep=0.3; nodesep=0.15;
node [shape=box, style="rounded,filled", fontname=Helvetica, fontsize=12, color="#888888"];
node [height=0.3, margin="0.14,0.06"];
edge [color="#777777", arrowsize=0.6];"""


def dot(rulegraph: str) -> str:
    """Returns the graph to draw, in the language of Graphviz, from the output of `snakemake --rulegraph`.

    An arrow is left out where other arrows lead to the same rule, and so is `all`. Rules that nothing follows share a
    box if they follow the same rules.
    """
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', rulegraph))
    arrows = [(names[a], names[b]) for a, b in re.findall(r"(\d+) -> (\d+)", rulegraph)]
    graph = nx.transitive_reduction(nx.DiGraph(arrow for arrow in arrows if "all" not in arrow))
    boxes: dict[object, list[str]] = {}
    for rule in sorted(graph):
        boxes.setdefault(rule if graph[rule] else frozenset(graph.predecessors(rule)), []).append(rule)
    box = {rule: ",".join(rules) for rules in boxes.values() for rule in rules}
    home = {
        rule: file.stem
        for file in (ROOT / "workflow/rules").glob("*.smk")
        for rule in re.findall(r"^ *(?:rule|use rule \w+ as) (\w+)", file.read_text(), re.M)
    }
    lines = []
    for rules in boxes.values():
        label = r"\n".join(rules)
        lines.append(f'"{box[rules[0]]}" [label="{label}", fillcolor="{COLOURS[home[rules[0]]]}"];')
    lines += sorted({f'"{box[a]}" -> "{box[b]}";' for a, b in graph.edges})
    return "\n".join(["digraph rules {", STYLE, *lines, "}\n"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "snakemake", "-s", ROOT / "Snakefile", "--directory", folder, "--rulegraph"]
        rulegraph = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    subprocess.run(["uvx", "graphviz-pure", "-Tsvg", "-o", PICTURE], input=dot(rulegraph), text=True, check=True)
