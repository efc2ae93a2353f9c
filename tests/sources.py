"""The package's own source, parsed once, for the tests that read it instead of running it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "terakoya"


@dataclass(frozen=True)
class Source:
    """One file: its path below the package ("train/files.py"), text and syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """The dotted name below `terakoya`; a package's `__init__` keeps that as its last part."""
        return self.path.removesuffix(".py").replace("/", ".")

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def names(self) -> dict[str, str]:
        """Map the names the file gives to what it imports: `import numpy as np` -> {"np": "numpy"}."""
        names: dict[str, str] = {}
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for name in node.names:
                    first = name.name.partition(".")[0]
                    names[name.asname or first] = name.name if name.asname else first
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        return names

    @cached_property
    def calls(self) -> list[tuple[ast.Call, str]]:
        """Every call with the full name of what it calls."""
        return [(node, dotted(node.func, self.names)) for node in self.nodes if isinstance(node, ast.Call)]

    def at(self, node: ast.AST) -> str:
        return f"src/terakoya/{self.path}:{getattr(node, 'lineno', 1)}"


def parsed(path: str, text: str) -> Source:
    return Source(path, text, ast.parse(text, path))


@cache
def sources() -> tuple[Source, ...]:
    """Return every Python file of the package, by path."""
    files = sorted(PACKAGE.rglob("*.py"))
    assert files, f"no source below {PACKAGE}"
    return tuple(parsed(file.relative_to(PACKAGE).as_posix(), file.read_text(encoding="utf-8")) for file in files)


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """Return the full name of `np.linalg.norm`, imports resolved; "?" stands for what is computed."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return "?"
