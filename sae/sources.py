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
    todo = [*_named(Path(script))]
    while todo:
        name = todo.pop()
        path = _file(name)
        if name not in found and path is not None and name not in _AROUND:
            found[name] = path
            todo += [*_named(path), name.rpartition(".")[0]]
    return dict(sorted(found.items()))


@cache
def code(script: str | Path) -> str:
    """Returns a hash of a script and of everything in `sae` that it imports."""
    parts = [_hash(Path(script)), *((name, _hash(path)) for name, path in imported(script).items())]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


@cache
def _hash(path: Path) -> str:
    """Returns a hash of a file's syntax tree, without comments, and of the data files beside it that it names."""
    tree = _tree(path)
    digest = hashlib.sha256(ast.dump(tree).encode())
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    for beside in sorted(p for p in path.parent.iterdir() if p.name in strings and p.suffix != ".py"):
        files = sorted(p for p in beside.rglob("*") if p.is_file()) if beside.is_dir() else [beside]
        if not any(file.suffix in (".py", ".pyc") for file in files):  # a package is not data
            for file in files:
                digest.update(file.relative_to(path.parent).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


@cache
def _named(path: Path) -> frozenset[str]:
    """Returns the names that a file imports from `sae`, and the modules of each `sae.name`; not all are modules."""
    names: set[str] = set()
    todo: list[ast.AST] = [_tree(path)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sae":
            package = node.module.removeprefix("sae").lstrip(".")
            inside = [f"{package}.{alias.name}".lstrip(".") for alias in node.names]
            names |= {package, *(_HOME.get(name, name) for name in inside)}
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("sae.") for alias in node.names if alias.name.startswith("sae.")}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sae":
            names.add(_HOME.get(node.attr, ""))
    return frozenset(names)


def _file(name: str) -> Path | None:
    """Returns a module's or a package's file; None for `sae` itself, which imports on demand, and for other names."""
    base = _CODE / name.replace(".", "/")
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if name and p.is_file()), None)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())
