"""What may import what: the table of layers, read off the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.sources import Source, dotted, parsed, sources

LEVELS = {
    "__init__": 0, "config": 0, "errors": 0, "log": 0, "device": 0, "sandbox": 0, "jail": 0,
    "corpus": 1, "tokenizer": 1, "zoo": 1, "model.spec": 1,
    "model": 2, "ops": 2,
    "data": 3, "quant": 3, "zoo.convert": 3, "zoo.weights": 3, "zoo.gguf": 3, "zoo.gguf_write": 3,
    "zoo.gguf_model": 3, "zoo.config_json": 3,
    "engine": 4, "train": 4, "ngram": 4, "vectors": 4,
    "eval": 5, "tune": 5, "models": 5, "ngram.run": 5,
    "serve": 6, "apps": 6, "plan": 6, "understand": 6,
    "cli": 7, "__main__": 7,
}  # fmt: skip
# A package's __init__ runs before any of its modules, so it may lean on no more than the lowest of them.
LEVELS |= {"model.__init__": 1}
SIDEWAYS = {  # among equals of different packages, one way only
    ("zoo", "model.spec"),
    ("model", "ops"),
    ("__main__", "cli"),
    *((f"zoo.{file}", "quant") for file in ("convert", "weights", "gguf", "gguf_write", "gguf_model")),
}
BRINGS_TORCH = ("torch", "transformers", "safetensors.torch", "accelerate", "triton")
LATE_TORCH = {"device"}  # level 0, but it is about torch: inside functions it may


def unit(module: str) -> str:
    """Return the row of the table for a module: "model.spec" for "model.spec.attention", "zoo" for "zoo.sizes"."""
    if module.startswith("model.spec_"):  # one noun in several files
        return "model.spec"
    parts = module.split(".")
    for size in range(len(parts), 0, -1):
        if (row := ".".join(parts[:size])) in LEVELS:
            return row
    raise KeyError(module)


def resolved(name: str, modules: frozenset[str]) -> str:
    """Return the module that "model.build.Model" names: the longest part that is a file, else a package's __init__."""
    parts = name.split(".") if name else []
    for size in range(len(parts), 0, -1):
        part = ".".join(parts[:size])
        if part in modules:
            return part
        if f"{part}.__init__" in modules:
            return f"{part}.__init__"
    return "__init__" if not parts or ("__init__" in modules and parts[0].startswith("__")) else name


def named(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Every import anywhere in the file, as a full dotted name, relative ones resolved."""
    package = ["terakoya", *source.module.split(".")[:-1]]
    for node in source.nodes:
        if isinstance(node, ast.Import):
            yield from ((node, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node, f"{start}.{name.name}") for name in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func, source.names) == "importlib.import_module" and node.args:
            given = node.args[0]
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                yield node, given.value


def upward(source: Source, modules: frozenset[str]) -> Iterator[str]:
    """Say which imports of one file go up or sideways."""
    here = unit(source.module)
    for node, name in named(source):
        if name.partition(".")[0] != "terakoya":
            continue
        target = resolved(name.partition(".")[2], modules)
        there = unit(target)
        same = here.partition(".")[0] == there.partition(".")[0] or LEVELS[here] == 0
        if LEVELS[there] < LEVELS[here] or (LEVELS[there] == LEVELS[here] and (same or (here, there) in SIDEWAYS)):
            continue
        way = "up" if LEVELS[there] > LEVELS[here] else "sideways"
        yield (
            f"{source.at(node)}: {here} (level {LEVELS[here]}) imports {target} (level {LEVELS[there]}): "
            f"that is {way}; move the shared part down, or hand it in as an argument"
        )


def early_torch(source: Source) -> Iterator[str]:
    """Say where a file of level 0 or 1 brings torch in."""
    if LEVELS[unit(source.module)] > 1:
        return
    for node, name in named(source):
        if any(name == library or name.startswith(f"{library}.") for library in BRINGS_TORCH):
            if source.module in LATE_TORCH and node not in source.tree.body:
                continue
            if any(node in block.body for block in source.nodes if is_type_checking(block)):
                continue
            yield f"{source.at(node)}: imports {name}, but level {LEVELS[unit(source.module)]} starts without torch"


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and dotted(node.test, {}).rpartition(".")[2] == "TYPE_CHECKING"


def test_every_module_has_a_layer() -> None:
    unknown = []
    for source in sources():
        try:
            unit(source.module)
        except KeyError:
            unknown.append(source.path)
    assert not unknown, f"give these a level in LEVELS (tests/test_layers.py) and in the design: {unknown}"


def test_imports_go_down() -> None:
    modules = frozenset(source.module for source in sources())
    found = dict.fromkeys(problem for source in sources() for problem in upward(source, modules))
    assert not found, "\n" + "\n".join(found)


def test_the_low_levels_start_without_torch() -> None:
    found = [problem for source in sources() for problem in early_torch(source)]
    assert not found, "\n" + "\n".join(found)


KNOWN = frozenset(
    """__init__ errors config device model.__init__ model.spec model.build ops.__init__ ops.attend ops.select
    zoo.__init__ zoo.families zoo.convert zoo.weights quant.__init__ quant.codecs data.__init__ engine.__init__
    engine.scheduler train.__init__ train.loop tune.__init__ tune.lora eval.__init__ serve.__init__ apps.__init__
    cli.__init__ cli.main""".split()  # noqa: SIM905 - a list of forty quoted words reads worse
)
WRONG = [
    ("errors.py", "from terakoya import model"),
    ("errors.py", "import terakoya.zoo"),
    ("zoo/families.py", "from terakoya.zoo.convert import load"),
    ("zoo/families.py", "from .convert import load"),
    ("zoo/families.py", "from . import weights"),
    ("zoo/families.py", "from terakoya.model.build import Model"),
    ("model/spec.py", "from terakoya.model import build"),
    ("model/__init__.py", "from terakoya.model.build import Model"),
    ("ops/attend.py", "from terakoya.model.build import Model"),
    ("quant/codecs.py", "from terakoya.zoo.convert import load"),
    ("quant/codecs.py", "import terakoya.data"),
    ("train/loop.py", "def f():\n    from terakoya.engine import scheduler"),
    ("train/loop.py", "import importlib\nimportlib.import_module('terakoya.tune')"),
    ("tune/lora.py", "from ..eval import score"),
    ("apps/__init__.py", "from terakoya import serve"),
    ("serve/__init__.py", "from terakoya.cli.main import main"),
]
RIGHT = [
    ("errors.py", "from terakoya import __version__\nimport torchlike"),
    ("zoo/families.py", "from terakoya.model.spec import Model\nfrom terakoya.errors import nearest"),
    ("zoo/convert.py", "from . import weights, families\nfrom terakoya.quant.codecs import Int8"),
    ("model/build.py", "from terakoya.ops.select import attend\nfrom .spec import Model"),
    ("ops/attend.py", "from terakoya.model.spec import Model"),
    ("tune/lora.py", "from terakoya.engine.scheduler import S\nfrom terakoya.train import loop"),
    ("cli/main.py", "def f():\n    from terakoya import serve, apps, train, zoo"),
]


@pytest.mark.parametrize(("path", "text"), WRONG)
def test_wrong_import_is_found(path: str, text: str) -> None:
    assert list(upward(parsed(path, text), KNOWN))


@pytest.mark.parametrize(("path", "text"), RIGHT)
def test_right_import_passes(path: str, text: str) -> None:
    assert not list(upward(parsed(path, text), KNOWN))


def test_torch_is_found_low_down() -> None:
    late = "def f():\n    import torch\n"
    checked = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor\n"
    assert list(early_torch(parsed("zoo/families.py", late)))
    assert list(early_torch(parsed("device.py", "import torch")))
    assert list(early_torch(parsed("tokenizer/bpe.py", "from safetensors.torch import save")))
    passed = [("device.py", late), ("zoo/families.py", checked), ("zoo/convert.py", late), ("model/build.py", late)]
    assert not [path for path, text in passed if list(early_torch(parsed(path, text)))]
