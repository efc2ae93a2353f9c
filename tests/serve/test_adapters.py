"""Adapters as model names: the same answers as the base with the adapter on it, taken in and let go while it runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from terakoya.errors import TerakoyaError
from terakoya.serve.settings import Limits, Settings
from terakoya.serve.shelf import Adapter, Shelf, worn
from terakoya.tune import adapters, peft
from tests.serve.conftest import Running, listening, tiny_loaded

KEY = "key-for-tests"
ASK = {"prompt": "寺子屋", "max_tokens": 12, "temperature": 0}


def saved(folder: Path, seed: int = 1) -> Path:
    """Write a LoRA that changes what the tiny model says."""
    loaded = tiny_loaded()
    adapters.add(loaded.model, adapters.Lora(rank=2, alpha=8.0), seed=seed)
    with torch.no_grad():
        for part in adapters.parts(loaded.model).values():
            part.b.normal_(generator=torch.Generator().manual_seed(seed))
    peft.save(loaded.model, loaded.family, folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    for i, name in enumerate(("one", "two")):
        saved(root / name, i + 1)
    (root / "empty").mkdir()
    (root / "out").symlink_to(root.parent)
    return root


@pytest.fixture(scope="module")
def running(root: Path) -> Iterator[Running]:
    shelf = Shelf({"tiny": tiny_loaded}, Limits(), adapters={"one": Adapter("tiny", root / "one")}, most=1)
    with listening(shelf, keys=(KEY,), adapters=root) as found:
        found.http.headers["authorization"] = f"Bearer {KEY}"
        yield found


def said(running: Running, model: str) -> str:
    reply = running.post("/v1/completions", ASK | {"model": model})
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["text"]


def test_an_adapter_is_a_model(running: Running, root: Path) -> None:
    base = said(running, "tiny")
    assert said(running, "one") != base
    assert said(running, "tiny") == base  # the base was not touched
    listed = {m["id"]: m["parent"] for m in running.http.get("/v1/models").json()["data"]}
    assert listed["one"] == "tiny"
    # The same as the adapter on the base, without folding it in.
    loaded = tiny_loaded()
    peft.load(loaded.model, loaded.family, root / "one")
    with listening(Shelf({"worn": lambda: loaded}, Limits())) as other:
        engine = other.shelf.open["worn"].engine
        if "PyTorch" in engine.describe():
            assert said(other, "worn") == said(running, "one")
    # Tensors that the adapter leaves alone are there once.
    models = [running.shelf.open[name].loaded.model for name in ("tiny", "one")]
    tables = {m.embed.token.weight.data_ptr() for m in models}
    assert len(tables) == 1


def test_load_and_unload(running: Running) -> None:
    load = {"lora_name": "two", "lora_path": "two"}
    assert running.post("/v1/load_lora_adapter", load).json()["parent"] == "tiny"
    second = said(running, "two")
    assert second not in (said(running, "one"), said(running, "tiny"))
    assert running.post("/v1/load_lora_adapter", load).status_code == 400
    replaced = running.post("/v1/load_lora_adapter", load | {"lora_path": "one", "load_inplace": True})
    assert replaced.status_code == 200
    assert said(running, "two") == said(running, "one")
    gone = weakref.ref(running.shelf.open["two"].loaded.model)
    assert running.post("/v1/unload_lora_adapter", {"lora_name": "two"}).status_code == 200
    assert running.post("/v1/completions", ASK | {"model": "two"}).status_code == 404
    gc.collect()
    assert gone() is None
    assert running.shelf.open["tiny"].users == 1  # "one" holds it


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"lora_name": "x", "lora_path": "../x"}, 400), ({"lora_name": "x", "lora_path": "one/../one"}, 400),
        ({"lora_name": "x", "lora_path": "/etc"}, 400), ({"lora_name": "x", "lora_path": "out"}, 400),
        ({"lora_name": "x", "lora_path": "."}, 400), ({"lora_name": "x", "lora_path": "nothing"}, 400),
        ({"lora_name": "x", "lora_path": "a\0b"}, 400), ({"lora_name": "x", "lora_path": "..\\x"}, 400),
        ({"lora_name": "x", "lora_path": "empty"}, 400), ({"lora_name": "../x", "lora_path": "one"}, 400),
        ({"lora_name": "x", "lora_path": "one", "base_model_name": "one"}, 400),
        ({"lora_name": "x", "lora_path": "one", "base_model_name": "y"}, 404),
        ({"lora_name": "tiny", "lora_path": "one"}, 400),
    ],
)  # fmt: skip
def test_what_is_refused(running: Running, root: Path, body: dict[str, str], status: int) -> None:
    before = running.shelf.names
    reply = running.post("/v1/load_lora_adapter", body)
    assert reply.status_code == status, reply.text
    assert str(root) not in reply.text
    assert running.shelf.names == before


def test_closed_unless_the_owner_opens_it(root: Path) -> None:
    with listening(Shelf({"tiny": tiny_loaded}, Limits())) as running:
        for path, body in (
            ("load", {"lora_name": "x", "lora_path": "one"}),
            ("unload", {"lora_name": "x"}),
        ):
            assert running.post(f"/v1/{path}_lora_adapter", body).status_code == 403
    with pytest.raises(TerakoyaError, match="--adapters"):
        Settings(adapters=root)


def test_adapters_of_the_command_line(root: Path) -> None:
    found = worn([f"a={root}/one", f"b={root}/two@other"], ["tiny", "other"])
    assert found == {"a": Adapter("tiny", root / "one"), "b": Adapter("other", root / "two")}
    for bad in ("one", f"a={root}/empty", f"a={root}/one@nobody", f"tiny={root}/one", f"a b={root}/one"):
        with pytest.raises(TerakoyaError, match="--adapter"):
            worn([bad], ["tiny"])


def test_a_base_stays_while_an_adapter_is_used(root: Path) -> None:
    """One model may be open: the adapter's base makes room together with it, and only when neither is used."""
    openers = {"a": lambda: tiny_loaded(0), "b": lambda: tiny_loaded(1)}
    shelf = Shelf(openers, Limits(), adapters={"on-a": Adapter("a", root / "one")}, most=1)
    with listening(shelf) as running:
        first = said(running, "on-a")
        assert sorted(shelf.open) == ["a", "on-a"]
        said(running, "b")
        assert list(shelf.open) == ["b"]
        assert said(running, "on-a") == first
        assert sorted(shelf.open) == ["a", "on-a"]


def test_different_adapters_at_once(root: Path) -> None:
    """The base and two adapters, asked for together again and again: each gives what it gives alone, to the bit."""
    worn_ = {"one": Adapter("tiny", root / "one"), "two": Adapter("tiny", root / "two")}
    with listening(Shelf({"tiny": tiny_loaded}, Limits(), adapters=worn_, deterministic=True)) as running:
        names = ["tiny", "one", "two"]
        alone = {name: said(running, name) for name in names}
        assert len(set(alone.values())) == 3
        with ThreadPoolExecutor(9) as pool:
            found = list(pool.map(lambda name: (name, said(running, name)), names * 6))
        assert all(text == alone[name] for name, text in found)
