"""Which models are open: room by number and by memory, idleness, failures."""

from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from terakoya.cli.main import parser
from terakoya.cli.serve import aimed, drafts, models, serve
from terakoya.errors import TerakoyaError
from terakoya.serve.encoder import Encoder
from terakoya.serve.memory import available
from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf
from terakoya.tokenizer import train
from terakoya.zoo.convert import Loaded, save
from tests.engine.engine_fakes import byte_tokenizer, tiny
from tests.serve.conftest import Running, listening, slow, tiny_loaded, wait

ASK = {"prompt": "x", "max_tokens": 1}


def ask(running: Running, name: str) -> int:
    return running.post("/v1/completions", ASK | {"model": name}).status_code


def test_short_memory_closes_who_is_idle() -> None:
    """With little free, only what is used stays, and the last one in any case; with room again, all may be open."""
    free = [50]
    shelf = Shelf(dict.fromkeys("abc", tiny_loaded), Limits(), room=lambda: (free[0], 100))
    with listening(shelf) as running:
        assert [ask(running, name) for name in "abc"] == [200] * 3
        assert sorted(shelf.open) == ["a", "b", "c"]
        model = weakref.ref(shelf.open["a"].loaded.model)
        free[0] = 1
        wait(lambda: len(shelf.open) == 1)
        gc.collect()
        assert model() is None
        assert ask(running, "a") == 200  # room is made for it
        assert list(shelf.open) == ["a"]
        free[0] = 50
        assert ask(running, "b") == 200
        assert sorted(shelf.open) == ["a", "b"]


def test_an_opening_that_finds_no_memory_is_tried_again_with_more() -> None:
    shelf = Shelf({"a": tiny_loaded, "big": lambda: tiny_loaded(1)}, Limits())

    def big():
        if shelf.open:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return tiny_loaded(1)

    def huge():
        raise MemoryError

    shelf.openers |= {"big": big, "huge": huge}
    shelf.most = 3
    with listening(shelf) as running:
        assert ask(running, "big") == 200
        assert list(shelf.open) == ["big"]
        assert ask(running, "huge") == 503
        assert ask(running, "a") == 200


def test_memory_is_read_off_the_system(tmp_path: Path) -> None:
    free, total = available()
    assert 0 < free <= total
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\n", encoding="utf-8")
    assert available(info, tmp_path) == (400 * 1024, 1000 * 1024)
    for name, text in (("max", "500000\n"), ("current", "450000\n"), ("stat", "anon 1\ninactive_file 1000\n")):
        (tmp_path / f"memory.{name}").write_text(text, encoding="utf-8")
    assert available(info, tmp_path) == (51_000, 500_000)
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    assert available(info, tmp_path) == (400 * 1024, 1000 * 1024)


def test_a_model_in_use_is_not_closed() -> None:
    shelf = Shelf({"a": lambda: tiny_loaded(context=4096), "b": tiny_loaded}, Limits(), most=1)
    long = {"model": "a", "prompt": "x", "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with listening(shelf) as running:
        slow(running.shelf.open["a"].engine)
        with running.http.stream("POST", "/v1/completions", json=long) as reply:
            pieces = reply.iter_raw()  # kept: the connection ends with the last reference to it
            next(pieces)
            full = running.post("/v1/completions", ASK | {"model": "b"})
            assert (full.status_code, full.headers["retry-after"]) == (503, "5")
        running.idle()
        assert ask(running, "b") == 200
        assert list(shelf.open) == ["b"]


@pytest.mark.parametrize("stay", ["0", 0, "1ms"])
def test_a_client_of_ollama_says_how_long(stay: object) -> None:
    shelf = Shelf({"tiny": tiny_loaded}, Limits(), idle=600)
    with listening(shelf) as running:
        assert running.post("/api/generate", {"model": "tiny", "prompt": "x", "keep_alive": stay}).status_code == 200
        wait(lambda: not shelf.open)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"by": "torch"}, "PyTorch"),
        ({"by": "native", "weights": "int8"}, "weights int8 (inputs of layers in int8)"),
        ({"weights": "int4"}, "weights int4 (inputs of layers in int8)"),
    ],
)
def test_who_computes_is_asked_for_once_for_all_models(more: dict, words: str) -> None:
    shelf = Shelf(dict.fromkeys("ab", tiny_loaded), Limits(), **more)
    with listening(shelf) as running:
        assert [ask(running, name) for name in "ab"] == [200, 200]
        assert all(words in shelf.open[name].engine.describe() for name in "ab")


def test_smaller_weights_that_nobody_can_compute_with_are_one_line() -> None:
    for more in (["--by", "torch"], ["--device", "cuda"]):
        args = parser().parse_args(["serve", "somewhere", "--weights", "int4", *more])
        with pytest.raises(TerakoyaError, match=r"--weights: .int4. .*native program only"):
            serve(args)


def test_what_may_wait_grows_with_the_context() -> None:
    assert [Limits().queue(n) for n in (256, 8192, 1 << 20)] == [16_384, 32_768, 1_000_000]


def bert() -> Loaded:
    return Loaded(tiny(family="bert"), byte_tokenizer(), "bert")


def test_a_smaller_model_guesses_for_the_one_it_is_meant_for() -> None:
    """The same answers with and without, and /metrics says how often the guesses were right."""
    shelf = Shelf(dict.fromkeys("ab", tiny_loaded), Limits(), drafts={"b": tiny_loaded})
    with listening(shelf) as running:
        body = {"prompt": "寺子屋", "max_tokens": 40, "temperature": 0.8, "seed": 3, "ignore_eos": True}
        said = [running.post("/v1/completions", body | {"model": name}).json() for name in "ab"]
        assert said[0]["choices"] == said[1]["choices"]
        lines = running.http.get("/metrics").text.splitlines()
        counts = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("terakoya_")}
        made, right = (f"terakoya_{name}_tokens_total" for name in ("drafted", "accepted"))
        assert counts[f'{made}{{model="a"}}'] == 0
        assert counts[f'{made}{{model="b"}}'] == counts[f'{right}{{model="b"}}'] > 20
        assert "draft up to 4 ahead" in shelf.open["b"].engine.describe()


def test_a_draft_with_other_words_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    other = replace(tiny_loaded(), tokenizer=train(["あいうえお"], "chars", 259))
    shelf = Shelf({"a": tiny_loaded, "b": tiny_loaded}, Limits(), drafts={"b": lambda: other})
    with listening(shelf) as running, caplog.at_level(logging.ERROR, "terakoya.serve"):
        assert [ask(running, name) for name in "ab"] == [200, 503]
    assert "draft: has another vocabulary" in shelf.failed["b"]
    assert "b cannot be opened: draft" in caplog.text


def test_what_does_not_reach_a_model_that_reads_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "terakoya.serve"):
        for more in ({"weights": "int8"}, {"by": "native"}, {"drafts": {"b": tiny_loaded}}):
            shelf = Shelf({"a": tiny_loaded, "b": bert}, Limits(), **more)
            with listening(shelf) as running:
                found = running.post("/v1/embeddings", {"model": "b", "input": "x"}).status_code
                assert found == (200 if "weights" in more else 503)
    lines = [record.getMessage() for record in caplog.records]
    assert any("reads only · device cpu · weights float32" in line and "by PyTorch" in line for line in lines)
    assert "b: --weights int8 is for models that write: its weights stay as they are" in lines
    assert any("b cannot be opened: --by native: does not reach a model that reads only" in line for line in lines)
    assert any("b cannot be opened: --draft: guesses for models that write" in line for line in lines)


def test_rope_and_draft_name_the_model_that_is_meant(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(tiny_loaded(), tmp_path / name)
    save(bert(), tmp_path / "reads")

    def asked(*words: str) -> tuple[dict, dict]:
        places = [str(tmp_path / name) for name in ("one", "two", "reads")]
        args = parser().parse_args(["serve", *places, *words])
        openers = models(args)
        return openers, drafts(args, list(openers))

    openers, guess = asked("--rope", "yarn:2", "--rope", "linear:3@two", "--draft", f"{tmp_path / 'one'}@two")
    assert [openers[name]().spec.context for name in ("one", "two")] == [512, 768]
    assert list(guess) == ["two"]
    assert guess["two"]().spec == tiny_loaded().spec
    assert isinstance(openers["reads"](), Encoder)
    for words, problem in (
        (("--rope", "yarn:2@three"), "--rope: .three. is for a model that is not served"),
        (("--rope", "yarn:2", "--rope", "yarn:4"), "--rope: .* stands there twice"),
        (("--rope", "ntk"), "rope"),
        (("--draft", str(tmp_path / "none")), "no such file or folder"),
        (("--draft", str(tmp_path / "one"), "--deterministic"), "--draft: is not used where every bit matters"),
    ):
        with pytest.raises(TerakoyaError, match=problem):
            asked(*words)
    with pytest.raises(TerakoyaError, match="no rotary positions"):
        asked("--rope", "yarn:2@reads")[0]["reads"]()
    odd = tmp_path / "a@b"
    odd.mkdir()
    assert aimed("--draft", [str(odd)], ["x"]) == {"x": str(odd)}
