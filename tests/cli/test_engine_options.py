"""generate and chat: a draft model, longer positions, and models that write one text from another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from terakoya.cli import serve
from terakoya.cli.main import main
from terakoya.device import Device
from terakoya.zoo.convert import Loaded, save
from tests.engine.engine_fakes import byte_tokenizer, tiny
from tests.engine.test_sources import translator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models: a llama, a like one, and a T5."""
    root = tmp_path_factory.mktemp("models")
    for name, model, family in (
        ("llama", tiny(), "llama2"),
        ("gpt2", tiny(seed=1, family="gpt2"), "gpt2"),
        ("t5", translator("t5"), "t5"),
    ):
        save(Loaded(model, byte_tokenizer(), family), root / name)
    return root


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[str, str]:
    main(["generate", *map(str, words), "--temperature", "0", "--max-tokens", "20"])
    return capsys.readouterr()


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    with pytest.raises(SystemExit) as end:
        said(capsys, *words)
    assert end.value.code == 2
    found = capsys.readouterr().err.splitlines()
    assert found[-1].startswith("terakoya: ")
    assert sum(line.startswith("terakoya: ") for line in found) == 1
    return found[-1]


def test_a_draft_says_the_same_and_how_often_it_was_right(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, _ = said(capsys, folder / "llama", "吾輩は")
    text, told = said(capsys, folder / "llama", "吾輩は", "--draft", folder / "llama")
    assert text == plain
    assert "draft up to 4 ahead" in told
    right, proposed = (int(word) for word in told.splitlines()[-1].split() if word.isdigit())
    assert right == proposed > 0
    assert said(capsys, folder / "llama", "吾輩は", "--draft", folder / "gpt2")[0] == plain


def test_longer_positions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "a" * 80
    assert "context" in refused(capsys, folder / "llama", long)
    text, told = said(capsys, folder / "llama", long, "--rope", "yarn:2")
    assert "context 128" in told
    assert text.strip("\n")
    assert "yarn:2" in refused(capsys, folder / "llama", long, "--rope", "ntk")
    assert "no rotary positions" in refused(capsys, folder / "gpt2", long, "--rope", "yarn:2")
    batch = folder / "batch.jsonl"
    batch.write_text(f'{{"prompt": "{long}"}}\n', encoding="utf-8")
    assert '"finish": ' in said(capsys, folder / "llama", "--batch", batch, "--rope", "linear:2")[0]


def test_an_encoder_decoder_writes_from_the_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, told = said(capsys, folder / "t5", "猫がいる")
    second, _ = said(capsys, folder / "t5", "犬がいた。")
    assert "tokens of sources" in told
    assert first != second
    assert "a draft needs two decoders" in refused(capsys, folder / "t5", "猫", "--draft", folder / "llama")


def told(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[str, str]:
    main(["chat", *map(str, words), "--temperature", "0", "--max-tokens", "20"])
    return capsys.readouterr()


def without_rates(text: str) -> str:
    return re.sub(r"[\d.]+ tokens/s.*", "", text)


def test_a_chat_with_a_draft_says_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = folder / "talker"
    save(Loaded(tiny(context=512), byte_tokenizer().with_template("alpaca"), "llama2"), talk)
    save(Loaded(tiny(context=512, seed=2), byte_tokenizer().with_template("alpaca"), "llama2"), folder / "guesser")
    asked = (talk, "--ask", "寺子屋とは", "--ask", "もう一度", "--system", "短く", "--by", "torch")
    plain, _ = told(capsys, *asked)
    for draft, all_right in ((talk, True), (folder / "guesser", False)):
        found, first = told(capsys, *asked, "--draft", draft)
        assert without_rates(found) == without_rates(plain)
        assert "draft up to 4 ahead" in first
        guesses = re.findall(r"(\d+) of (\d+) guesses right", found)
        assert len(guesses) == 2
        assert all((right == made) == all_right for right, made in guesses)
    with pytest.raises(SystemExit):
        told(capsys, talk, "--ask", "x", "--draft", folder / "t5")
    assert "a draft needs two decoders" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        told(capsys, talk, "--ask", "x", "--draft", talk, "--image", "cat.png")
    assert "cannot guess about pictures" in capsys.readouterr().err


def test_numbers_for_a_gpu_are_bfloat16_and_scales_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = serve.opened(str(folder / "llama")).model
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    monkeypatch.setattr(serve, "choose", lambda device, precision: Device("cpu", "bf16"))  # no GPU here
    half = serve.opened(str(folder / "llama"), "cpu", "bf16").model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert [b.dtype for b in half.buffers()] == [b.dtype for b in whole.buffers()]


def test_a_model_without_a_template_talks_by_the_one_that_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(Loaded(tiny(), byte_tokenizer().with_template(None), "llama2"), tmp_path / "plain")
    words = ["chat", str(tmp_path / "plain"), "--ask", "寺", "--max-tokens", "4", "--temperature", "0"]
    for more, said in (([], "--template NAME"), (["--template", "chatmI"], "chatml")):
        with pytest.raises(SystemExit) as end:
            main([*words, *more])
        assert end.value.code == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
    main([*words, "--template", "vicuna", "--system", ""])
    assert "4 tokens" in "".join(capsys.readouterr())
