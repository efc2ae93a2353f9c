"""Pictures: prepared as transformers prepares them, shown to a model that generates and one that talks."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from terakoya.cli.main import main
from terakoya.config import override
from terakoya.engine.generate import generate
from terakoya.engine.sampling import Sampling
from terakoya.engine.seeing import Seeing, begun, prompt
from terakoya.engine.vectors import pictured
from terakoya.errors import MissingExtra, TerakoyaError
from terakoya.model.build import build, initialise
from terakoya.model.context import Packed
from terakoya.tokenizer import Tokenizer, train
from terakoya.zoo import convert, lineage
from terakoya.zoo.picture import Preparation, opened, preparation, prepared

Image = pytest.importorskip("PIL.Image", reason="needs terakoya[image]")
GREEDY = Sampling(temperature=0.0, max_tokens=6)


def drawn(mode: str, wide: int, high: int) -> Any:
    shape = (high, wide, {"RGB": 3, "RGBA": 4}[mode]) if mode != "L" else (high, wide)
    return Image.fromarray(np.random.default_rng(wide).integers(0, 256, shape, np.uint8), mode)


@pytest.mark.parity
@pytest.mark.parametrize(("mode", "wide", "high"), [("RGB", 90, 50), ("RGB", 37, 81), ("RGBA", 64, 64), ("L", 33, 20)])
@pytest.mark.parametrize("more", [{}, {"do_center_crop": False, "size": {"height": 24, "width": 24}}], ids=str)
def test_prepared_as_transformers_does(mode: str, wide: int, high: int, more: dict[str, Any], tmp_path: Path) -> None:
    theirs = pytest.importorskip("transformers.models.clip.image_processing_pil_clip").CLIPImageProcessorPil
    made = theirs(**({"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}} | more))
    made.save_pretrained(tmp_path)
    image = drawn(mode, wide, high)
    image.save(tmp_path / "a.png")
    want = made(image, return_tensors="np")["pixel_values"][0]
    got = prepared(opened(tmp_path / "a.png"), preparation(tmp_path, 24))
    assert got.shape == want.shape == (3, 24, 24)
    assert np.abs(got - want).max() <= 1e-5


def test_a_folder_that_says_nothing_means_clip(tmp_path: Path) -> None:
    assert preparation(tmp_path, 28) == Preparation(28, None, (28, 28))


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"image_processor_type": "SiglipImageProcessor"}, "image_processor_type"),
        ({"size": {"shortest_edge": 30}, "crop_size": 30}, "another size"),
        ({"do_pad": True}, "do_pad"),
        ({"size": "large"}, "cannot be read"),
    ],
)
def test_what_is_not_understood_is_an_error(said: dict[str, Any], problem: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(TerakoyaError, match=problem):
        preparation(tmp_path, 28)


def test_files_that_are_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    drawn("RGB", 8, 8).save(tmp_path / "a.bmp")
    for name, problem in (("a.png", "no picture"), ("a.bmp", "PNG, JPEG"), ("b.png", "not there")):
        with pytest.raises(TerakoyaError, match=problem):
            opened(tmp_path / name)
    monkeypatch.setattr("terakoya.zoo.picture.LARGEST", 10)
    drawn("RGB", 8, 8).save(tmp_path / "b.jpg")
    with pytest.raises(TerakoyaError, match="too large"):
        opened(tmp_path / "b.jpg")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"terakoya\[image\]"):
        opened(tmp_path / "b.jpg")


@functools.cache
def llava() -> convert.Loaded:
    words = ["何が見えますか。猫が見えます。", "What do you see? A cat and a dog."] * 30
    specials = ("<|endoftext|>", "<image>", "<|im_start|>", "<|im_end|>")
    tokenizer = train(iter(words), "bpe", 330, specials)
    s = lineage.rescale(lineage.base("llava1.5"), 32, 2, 16)
    changes = {"vocab": tokenizer.vocab_size, "context": 128, "sight.token": tokenizer.specials["<image>"]}
    model = initialise(build(override(s, changes | {"sight.image": 28})), 0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2)
    return convert.Loaded(model, tokenizer, "llava1.5")


def tools() -> tuple[Any, Tokenizer, torch.Tensor]:
    loaded = llava()
    assert loaded.tokenizer is not None
    return loaded.model, loaded.tokenizer, torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def best(model: Any, ids: list[int], vectors: Any, count: int) -> list[int]:
    """The likeliest continuation, each time by one forward pass over all."""
    said: list[int] = []
    for _ in range(count):
        whole = torch.tensor([*ids, *said])
        with torch.no_grad():
            hidden = model(whole, Packed([len(whole)], vectors=(torch.tensor(vectors.places), vectors.rows)))
            said.append(int(model.head(hidden[-1:])[0].argmax()))
    return said


def test_generates_after_pictures() -> None:
    model, tokenizer, pixels = tools()
    ids, vectors = pictured(model, prompt(tokenizer, "<image>と<image>で何が違いますか。", "<image>", 2), pixels)
    assert len(vectors.places) == 8  # two pictures of two by two patches
    said = [t.id for t in generate(model, tokenizer, ids, GREEDY, memory=begun(model, ids, vectors))]
    assert said == best(model, list(ids), vectors, len(said))
    other = pictured(model, list(prompt(tokenizer, "a", "<image>", 2)), pixels)[0]
    assert sum(id == tokenizer.specials["<image>"] for id in other[:9]) == 8  # nowhere in the text: first of all
    with pytest.raises(TerakoyaError, match="one for each"):
        prompt(tokenizer, "<image> and <image>", "<image>", 1)


def test_talks_about_pictures_over_several_turns() -> None:
    model, tokenizer, pixels = tools()
    chat = Seeing(model, tokenizer, pixels[:1], template="chatml")
    first = "".join(chat.say("何が見えますか。", GREEDY))
    again = "".join(chat.say("ほかには。", GREEDY))
    assert chat._opened is not None
    _, wide, vectors = chat._opened
    assert chat._held[: len(wide)] == wide
    fresh = Seeing(model, tokenizer, pixels[:1], template="chatml")
    assert "".join(fresh.say("何が見えますか。", GREEDY)) == first
    assert fresh._held[len(wide)] == best(model, wide, vectors, 1)[0]
    fresh._forget()  # a memory that was lost is read again, pictures too
    assert "".join(fresh.say("ほかには。", GREEDY)) == again
    blind = Seeing(model, tokenizer, pixels[1:], template="chatml")
    "".join(blind.say("何が見えますか。", GREEDY))
    assert not torch.equal(blind._opened[2].rows, vectors.rows)  # type: ignore[index]
    chat.reset()
    assert "".join(chat.say("何が見えますか。", GREEDY)) == first


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = llava()
    convert.save(loaded, tmp_path / "model")
    drawn("RGB", 60, 40).save(tmp_path / "a.jpg")
    ask = ["generate", str(tmp_path / "model"), "何が見えますか。", "--temperature", "0", "--max-tokens", "5"]
    main([*ask, "--image", str(tmp_path / "a.jpg")])
    model, tokenizer, _ = tools()
    pixels = torch.from_numpy(prepared(opened(tmp_path / "a.jpg"), Preparation(28, None, (28, 28))))[None]
    ids, vectors = pictured(model, prompt(tokenizer, "何が見えますか。", "<image>", 1), pixels)
    memory = begun(model, ids, vectors)
    how = Sampling(temperature=0.0, max_tokens=5)
    want = "".join(t.text for t in generate(model, tokenizer, ids, how, memory=memory))
    assert capsys.readouterr().out == f"{want}\n"
    for more, problem in ((["--image", str(tmp_path / "none.jpg")], "not there"), (["--by", "native"], "PyTorch only")):
        with pytest.raises(SystemExit, match="2"):
            main([*ask, "--image", str(tmp_path / "a.jpg"), *more])
        assert problem in capsys.readouterr().err
