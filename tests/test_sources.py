import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from sae import sources


def in_copy(code: Path, expression: str) -> str:
    """Evaluates an expression with the copy's `sources`; a new process, since hashes are kept."""
    program = f"import sys; sys.path.insert(0, {str(code)!r}); from sae import sources; print({expression})"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def copy(tmp_path):
    for folder in ("sae", "workflow/scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def hashes(copy: Path, *names: str) -> list[str]:
    paths = [str(copy / "workflow/scripts" / f"{name}.py") for name in names]
    return ast.literal_eval(in_copy(copy, f"[sources.code(path) for path in {paths}]"))


def changed(copy: Path, file: str, text: str, *names: str) -> list[bool]:
    """Returns the scripts whose hash changes when text is added to a file."""
    before = hashes(copy, *names)
    with (copy / file).open("a") as opened:
        opened.write(text)
    return [a != b for a, b in zip(before, hashes(copy, *names), strict=True)]


def test_a_change_counts_where_it_is_imported_directly_or_not(copy):
    names = ("baselines", "train", "manifest", "layers_table")
    assert changed(copy, "sae/baselines.py", "\nx = 1\n", *names) == [True, False, False, False]
    assert changed(copy, "sae/training/step.py", "\nx = 1\n", *names[1:]) == [True, False, False]
    assert changed(copy, "sae/images/near_duplicates.py", "\nx = 1\n", "manifest", "layers_table") == [True, False]
    assert changed(copy, "sae/files.py", "\nx = 1\n", *names) == [True] * 4


def test_comments_and_what_runs_a_script_do_not_count(copy):
    assert changed(copy, "sae/files.py", "\n# a comment\n", "train") == [False]
    assert changed(copy, "sae/jobs.py", "\nx = 1\n", "train") == [False]
    assert changed(copy, "sae/verify.py", "\nx = 1\n", "train") == [False]
    assert changed(copy, "sae/warm.py", "\nx = 1\n", "train") == [False]
    assert changed(copy, "workflow/scripts/train.py", "\nx = 1\n", "train", "manifest") == [True, False]


@pytest.mark.parametrize(
    ("before", "after"),
    [("x: int", "x: int = None"), ("def f(*, a): ...", "def f(*, a=None): ..."), ("{**x}", "{None: x}"), ("1", "'1'")],
)
def test_none_is_something(tmp_path, before, after):
    scripts = []
    for number, text in enumerate((before, after)):
        scripts.append(tmp_path / f"{number}.py")
        scripts[-1].write_text(text)
    assert sources.code(scripts[0]) != sources.code(scripts[1])


def test_the_page_and_the_weights_count_for_the_scripts_that_use_them(copy):
    assert changed(copy, "sae/explorer/web/style.css", "b {}", "explorer", "explorer_point") == [True, False]
    (copy / "sae/weights/new.txt").write_text("")
    assert changed(copy, "sae/weights/new.txt", "x", "extract", "conclusion") == [True, False]


def test_every_way_of_importing_is_seen(copy, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sae\nimport sae.geometry\nfrom sae import config, load\nfrom sae.evidence import matching as m\n"
        "def later():\n    from sae.figures.style import save\n    return sae.splice\n"
    )
    found = set(ast.literal_eval(in_copy(copy, f"list(sources.imported({str(script)!r}))")))
    assert found >= {"geometry", "config", "autoencoder", "evidence", "evidence.matching", "figures.style", "vit"}
    assert not found & {"training", "baselines", "jobs", "verify", "warm"}


@pytest.mark.parametrize("name", ["train", "reference", "conclusion", "explorer", "manifest"])
def test_all_modules_that_a_script_loads_are_found(name):
    """Runs a script's imports, those inside its functions too."""
    script = ROOT / f"workflow/scripts/{name}.py"
    nodes = [n for n in ast.walk(ast.parse(script.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
    listed = "sorted(name.removeprefix('sae.') for name in sys.modules if name.startswith('sae.'))"
    program = "\n".join([*map(ast.unparse, nodes), "import sys", f"print({listed})"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(ast.literal_eval(done.stdout)) - {"jobs", "verify", "warm"}
    assert loaded <= set(ast.literal_eval(in_copy(ROOT, f"list(sources.imported({str(script)!r}))")))
