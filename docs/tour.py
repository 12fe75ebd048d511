"""Runs docs/tour.ipynb, and writes docs/tour.md with all that its cells print and draw: uv run python docs/tour.py

The notebook has no outputs, so a change of it is easy to read; the page has them.
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from PIL import Image

DOCS = Path(__file__).parent
NOTEBOOK, PAGE, PICTURE = DOCS / "tour.ipynb", DOCS / "tour.md", DOCS / "pictures/tour.png"


def cells(notebook: Path) -> list[tuple[str, str]]:
    """Returns kind (`code` or `markdown`) and text of each cell."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(notebook.read_text())["cells"]]


def run(notebook: Path, picture: Path) -> str:
    """Runs the cells in one namespace and returns the page. The last figure becomes the picture."""
    parts, names = [], dict[str, Any]()
    for kind, text in cells(notebook):
        parts.append(text if kind == "markdown" else f"```python\n{text}\n```")
        if kind == "code":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(text, names)
            if printed.getvalue():
                parts.append(f"```text\n{printed.getvalue()}```")
            if pyplot.get_fignums():
                pyplot.savefig(picture, dpi=90)
                pyplot.close()
                Image.open(picture).convert("RGB").quantize(64).save(picture, optimize=True)
                parts.append(f"![What the cell above draws]({picture.relative_to(notebook.parent)})")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(run(NOTEBOOK, PICTURE))
