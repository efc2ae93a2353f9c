"""Rules of the house that can be read off the source: each names the place, and each is shown to bite."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sources import REPOSITORY, Source, dotted, parsed, sources

FILE_LINES, FUNCTION_LINES = 500, 90

# Running bytes as code: nowhere. A file of weights, a recipe or a reply of a model is data.
NEVER_IMPORTED = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jinja2"}
NEVER_CALLED = {
    "eval": "runs its text",
    "exec": "runs its text",
    "__import__": "hides what is imported",
    "os.system": "goes through a shell",
    "os.popen": "goes through a shell",
    "subprocess.getoutput": "goes through a shell",
    "subprocess.getstatusoutput": "goes through a shell",
    "torch.load": "unpickles; use safetensors",
    "torch.save": "pickles; use safetensors",
    "torch.distributed.checkpoint.load": "unpickles its metadata",
    "yaml.load": "constructs objects",
}

# Reaching out of the process: only where it is the file's purpose. File -> library -> why.
REACHES_OUT = {
    "urllib.request",
    "requests",
    "httpx",
    "aiohttp",
    "http.client",
    "socket",
    "subprocess",
    "multiprocessing",
    "uvicorn",
}
MAY_REACH_OUT: dict[str, dict[str, str]] = {
    "sandbox.py": {"subprocess": "runs code of models in a sandbox, or not at all"},
    "ops/compile.py": {"subprocess": "runs the system's C compiler on our own sources"},
    "tune/writers.py": {"http.client": "asks a server that the user names to write examples"},
    "serve/server.py": {"uvicorn": "listens for clients, on the loopback unless told otherwise"},
}

Rule = Callable[[Source], Iterator[tuple[ast.AST, str]]]


def imported(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Every absolute import, with each name of a `from` import as if it were a module."""
    for node in source.nodes:
        if isinstance(node, ast.Import):
            yield from ((node, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node, f"{node.module}.{name.name}") for name in node.names)


def within(name: str, modules: set[str]) -> str | None:
    return next((module for module in modules if name == module or name.startswith(f"{module}.")), None)


def code_from_data(source: Source) -> Iterator[tuple[ast.AST, str]]:
    for node, name in imported(source):
        if module := within(name, NEVER_IMPORTED):
            yield node, f"imports {module}: it runs or rebuilds code from data"
    for call, name in source.calls:
        if name in NEVER_CALLED:
            yield call, f"calls {name}: it {NEVER_CALLED[name]}"
        for keyword in call.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else "?"
            if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and value is not False:
                yield call, f"passes {keyword.arg}= to {name}: it lets data run as code"


def reaching_out(source: Source) -> Iterator[tuple[ast.AST, str]]:
    allowed = MAY_REACH_OUT.get(source.path, {})
    for node, name in imported(source):
        module = within(name, REACHES_OUT)
        if module and module not in allowed:
            yield node, f"imports {module}: only files listed with a reason in MAY_REACH_OUT (tests/test_gates.py) may"


def swallowed(source: Source) -> Iterator[tuple[ast.AST, str]]:
    broad = {"Exception", "BaseException"}
    for node in source.nodes:
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield node, "catches everything: name the exceptions"
                continue
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            idle = all(isinstance(s, ast.Pass | ast.Continue) or is_ellipsis(s) for s in node.body)
            if idle and any(dotted(kind, source.names) in broad for kind in kinds):
                yield node, "swallows every error: name the ones that may be passed over"
    for call, name in source.calls:
        if name == "contextlib.suppress" and any(dotted(a, source.names) in broad for a in call.args):
            yield call, "swallows every error: name the ones that may be passed over"


def is_ellipsis(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def text_without_encoding(source: Source) -> Iterator[tuple[ast.AST, str]]:
    for call, name in source.calls:
        if any(keyword.arg in ("encoding", None) for keyword in call.keywords):
            continue
        method = name.rpartition(".")[2]
        if method in ("read_text", "write_text") and len(call.args) < (1 if method == "read_text" else 2):
            yield call, f"{method} without encoding= depends on the machine"
        elif opens_text(call, name):
            yield call, "opens text without encoding=: say encoding= or open bytes"


def opens_text(call: ast.Call, name: str) -> bool:
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    if name in ("open", "io.open", "os.fdopen"):
        modes += call.args[1:2]
        return not modes or not has_mode(modes[0], "b")
    if name in ("gzip.open", "bz2.open", "lzma.open", "zstandard.open"):
        modes += call.args[1:2]
        return bool(modes) and has_mode(modes[0], "t")
    if name.endswith(".open"):  # of a Path, if what it is given is a mode or nothing
        modes += call.args[:1]
        text = modes[0].value if modes and isinstance(modes[0], ast.Constant) else None
        return not (call.args or call.keywords) or (isinstance(text, str) and bool(re.fullmatch("[rwaxt+]+", text)))
    return False


def has_mode(mode: ast.expr, letter: str) -> bool:
    return isinstance(mode, ast.Constant) and letter in str(mode.value)


def printing(source: Source) -> Iterator[tuple[ast.AST, str]]:
    if not source.path.startswith("cli/"):
        yield from (
            (call, "prints: only terakoya.cli talks to the terminal") for call, n in source.calls if n == "print"
        )


def length(source: Source) -> Iterator[tuple[ast.AST, str]]:
    lines = source.text.count("\n") + 1
    if lines > FILE_LINES:
        yield source.tree, f"{lines} lines, at most {FILE_LINES}: it probably holds two ideas"
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield node, f"{node.name} has {lines} lines, at most {FUNCTION_LINES}"


RULES: list[Rule] = [code_from_data, reaching_out, swallowed, text_without_encoding, printing, length]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source_keeps(rule: Rule) -> None:
    found = [f"{source.at(node)}: {problem}" for source in sources() for node, problem in rule(source)]
    assert not found, "\n" + "\n".join(found)


def test_no_reason_to_reach_out_is_stale() -> None:
    used = {(s.path, within(name, REACHES_OUT)) for s in sources() for _, name in imported(s)}
    stale = [
        f"{path}: {module}"
        for path, modules in MAY_REACH_OUT.items()
        for module in modules
        if (path, module) not in used
    ]
    assert not stale, f"no longer imported, remove from MAY_REACH_OUT: {stale}"


MACHINE = re.compile(r"(?<![\w.:/~}-])/(?:work|root|home/\w+|Users/\w+)/")
TEXTS = {".py", ".toml", ".md", ".c", ".h", ".cpp", ".js", ".html", ".css", ".sh", ".json", ".yml", ".yaml", ".cfg"}


def texts() -> Iterator[Path]:
    for folder in ("src", "tests", "recipes", "bench", "docs", "examples"):
        yield from (path for path in sorted((REPOSITORY / folder).rglob("*")) if path.suffix in TEXTS)
    yield from (path for path in sorted(REPOSITORY.iterdir()) if path.suffix in TEXTS)


def test_no_path_of_somebodys_machine() -> None:
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if hit := MACHINE.search(line):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {hit[0]}… exists on one machine only")
    assert not found, "\n" + "\n".join(found)


def test_machine_paths_are_recognised() -> None:
    bad = ["'/" + "work/x'", "see /" + "root/.cache/y", "(/home/" + "anna/z)"]
    assert all(map(MACHINE.search, bad))
    assert not any(map(MACHINE.search, ["https://a.org/work/1", "runs/work/x", "~/work/x", "/work", "../home/x/y"]))


BAD: list[tuple[Rule, str]] = [
    (code_from_data, "import pickle"),
    (code_from_data, "from dill import loads"),
    (code_from_data, "def f():\n    import marshal as m"),
    (code_from_data, "import torch as t\nt.load('x')"),
    (code_from_data, "from torch import load\nload('x')"),
    (code_from_data, "from os import system as go\ngo('x')"),
    (code_from_data, "eval('1')"),
    (code_from_data, "exec('1')"),
    (code_from_data, "import yaml\nyaml.load(f)"),
    (code_from_data, "run('x', shell=True)"),
    (code_from_data, "run('x', shell=given)"),
    (code_from_data, "import numpy as np\nnp.load('x', allow_pickle=True)"),
    (reaching_out, "import subprocess"),
    (reaching_out, "from urllib import request"),
    (reaching_out, "from urllib.request import urlopen"),
    (reaching_out, "import socket as s"),
    (swallowed, "try: f()\nexcept: g()"),
    (swallowed, "try: f()\nexcept Exception: pass"),
    (swallowed, "try: f()\nexcept (KeyError, BaseException): ..."),
    (swallowed, "from contextlib import suppress\nwith suppress(Exception): f()"),
    (text_without_encoding, "open('x')"),
    (text_without_encoding, "open('x', 'w')"),
    (text_without_encoding, "open('x', mode)"),
    (text_without_encoding, "path.read_text()"),
    (text_without_encoding, "path.write_text('x')"),
    (text_without_encoding, "path.open()"),
    (text_without_encoding, "path.open('w')"),
    (text_without_encoding, "import gzip\ngzip.open('x', 'rt')"),
    (printing, "print(1)"),
    (length, "x = 1\n" * FILE_LINES),
    (length, "def f():\n" + "    x = 1\n" * FUNCTION_LINES),
]
GOOD: list[tuple[Rule, str]] = [
    (code_from_data, "import torch\nmodel.eval()\nself.load(x)\nre.compile('x')\nrun(['x'], shell=False)"),
    (reaching_out, "from urllib.parse import quote\nimport socketserver_like"),
    (swallowed, "try: f()\nexcept KeyError: pass\ntry: f()\nexcept BaseException:\n    g()\n    raise"),
    (
        text_without_encoding,
        "open('x', 'rb')\nopen('x', encoding='utf-8')\npath.read_text('utf-8')\nCheckpoint.open(path)",
    ),
    (text_without_encoding, "path.open('rb')\nimport gzip\ngzip.open('x')\npath.write_text('x', encoding='utf-8')"),
    (printing, "console.print(1)"),
    (length, "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1)),
]


@pytest.mark.parametrize(("rule", "text"), BAD)
def test_rule_bites(rule: Rule, text: str) -> None:
    assert list(rule(parsed("zoo/bad.py", text)))


@pytest.mark.parametrize(("rule", "text"), GOOD)
def test_rule_lets_pass(rule: Rule, text: str) -> None:
    assert not list(rule(parsed("zoo/good.py", text)))
