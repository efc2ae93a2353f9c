"""A corpus that every machine with Python already holds: the standard library of the running interpreter."""

from __future__ import annotations

import ast
import inspect
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from terakoya.corpus.document import Document
from terakoya.errors import TerakoyaError

LICENCE = "PSF-2.0"
# Packages of others, tests (some broken on purpose) and files that the build of this interpreter wrote.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "_bundled"}
_WRITTEN_BY_BUILD = ("_sysconfigdata", "_sysconfig_vars")
_NAMED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def python_stdlib() -> Iterator[Document]:
    """Yield the sources of the standard library, each followed by its documentation strings, in a fixed order.

    Sources are whole files (language "code"), decoded as PEP 263 says. Documentation strings of modules, classes and
    functions are documents of their own (language "en", dedented); one that came before is not repeated. All documents
    of a file share a `group`, since the strings also stand in the source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise TerakoyaError(str(root), "the standard library's sources are not on this machine")
    return _documents(root)


def _documents(root: Path) -> Iterator[Document]:
    seen: set[str] = set()
    for relative in _sources(root):
        source, text = f"python/{relative}", _decoded(root / relative)
        if not text.strip():
            continue
        yield Document(text, source, LICENCE, "code", source)
        for name, doc in _docstrings(text, source):
            if doc not in seen:
                seen.add(doc)
                yield Document(doc, f"{source}#{name}", LICENCE, "en", source)


def _sources(root: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        names = [name for name in files if name.endswith(".py") and not name.startswith(_WRITTEN_BY_BUILD)]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names]
    return sorted(found)


def _decoded(path: Path) -> str:
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError, OSError) as error:
        raise TerakoyaError(str(path), f"cannot be read as Python source ({error})") from None


def _docstrings(text: str, source: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, documentation string) in the order of the source; the module's name is "module"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # old escapes in others' strings
        try:
            tree = ast.parse(text, source)
        except SyntaxError as error:
            raise TerakoyaError(source, f"is not valid Python: {error.msg}") from None
    yield from _below(tree, "module")


def _below(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, (ast.Module, *_NAMED)):
        doc = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
        if doc and _encodable(doc):
            yield name, doc
    for child in ast.iter_child_nodes(node):
        yield from _below(child, f"{name}.{child.name}" if isinstance(child, _NAMED) else name)


def _encodable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
