"""The code that a script runs: a hash of it makes a change of the code rerun the jobs that depend on it."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

from sae import _HOME

_CODE = Path(__file__).parent
_AROUND = ("jobs", "verify", "warm")  # they run a script, and change nothing in its results


def imported(script: str | Path) -> dict[str, Path]:
    """Returns the modules of `sae` that a script imports, directly or not: dotted name below `sae` -> file."""
    found: dict[str, Path] = {}
    todo = [*_read(Path(script))[1]]
    while todo:
        name = todo.pop()
        path = _file(name)
        if name not in found and path is not None and name not in _AROUND:
            found[name] = path
            todo += [*_read(path)[1], name.rpartition(".")[0]]
    return dict(sorted(found.items()))


@cache
def code(script: str | Path) -> str:
    """Returns a hash of a script and of everything in `sae` that it imports."""
    parts = [_read(Path(script))[0], *((name, _read(path)[0]) for name, path in imported(script).items())]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


@cache
def _read(path: Path) -> tuple[str, frozenset[str]]:
    """Returns a hash of a file's syntax tree, without comments, and of the data files beside it that it names; and the
    names that it imports from `sae`, with the modules of each `sae.name`; not all are modules."""
    shape: list[str] = []
    strings: set[str] = set()
    names: set[str] = set()
    todo: list[tuple[object, bool]] = [(ast.parse(path.read_text()), True)]
    while todo:  # one walk: Snakemake reads all scripts at each start
        node, runs = todo.pop()
        if isinstance(node, ast.Constant):
            shape.append(f"Constant {node.value!r}")
            if isinstance(node.value, str):
                strings.add(node.value)
        elif isinstance(node, ast.AST):
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
                runs = False
            if runs:
                names |= _imports(node)
            shape.append(type(node).__name__)
            todo += [(getattr(node, field, None), runs) for field in node._fields]
        elif isinstance(node, list):
            shape.append(str(len(node)))
            todo += [(part, runs) for part in node]
        else:
            shape.append(str(node))
    digest = hashlib.sha256("\0".join(shape).encode("utf-8", "surrogatepass"))
    for beside in sorted(p for p in path.parent.iterdir() if p.name in strings and p.suffix != ".py"):
        files = sorted(p for p in beside.rglob("*") if p.is_file()) if beside.is_dir() else [beside]
        if not any(file.suffix in (".py", ".pyc") for file in files):  # a package is not data
            for file in files:
                digest.update(file.relative_to(path.parent).as_posix().encode() + file.read_bytes())
    return digest.hexdigest(), frozenset(names)


def _imports(node: ast.AST) -> set[str]:
    """Returns the names below `sae` that one node imports or uses."""
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sae":
        package = node.module.removeprefix("sae").lstrip(".")
        inside = [f"{package}.{alias.name}".lstrip(".") for alias in node.names]
        return {package, *(_HOME.get(name, name) for name in inside)}
    if isinstance(node, ast.Import):
        return {alias.name.removeprefix("sae.") for alias in node.names if alias.name.startswith("sae.")}
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sae":
        return {_HOME.get(node.attr, "")}
    return set()


def _file(name: str) -> Path | None:
    """Returns a module's or a package's file; None for `sae` itself, which imports on demand, and for other names."""
    base = _CODE / name.replace(".", "/")
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if name and p.is_file()), None)
