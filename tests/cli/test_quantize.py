"""terakoya quantize and convert --to gguf: what is printed is measured, what is written opens, errors are one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from terakoya.models import open_model
from terakoya.quant.linear import nbytes, packed_layers
from terakoya.zoo.convert import Loaded, load, save
from tests.cli.conftest import Terakoya
from tests.quant.small import small, tokenizer

TEXT = "寺子屋で読み書き算盤を学ぶ。ｶﾅ 👩🏽‍🏫 one and two make three\n" * 12


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save(Loaded(small(), tokenizer(), "smollm2"), tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "model"


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_quantize_measures_and_writes(method: str, model: Path, terakoya: Terakoya) -> None:
    more = () if method == "rtn" else ("--calibrate", "text.txt", "--tokens", "400")
    said = terakoya(
        "quantize",
        model,
        "--to",
        "int4",
        "--method",
        method,
        *more,
        "--text",
        "text.txt",
        "--limit",
        600,
        "--out",
        "out",
    )
    assert said.code == 0, said.err
    before, after = open_model(str(model)), open_model("out")
    assert packed_layers(after.model)
    for size in (nbytes(before.model), nbytes(after.model)):
        assert f"{size / 1e6:,.1f}" in said.out
    assert re.search(r"bits per byte [+-]\d+\.\d+%, KL 0\.\d+ nats/token", said.out)
    assert len(re.findall(r"\d+\.\d \((native|PyTorch)\)", said.out)) == 2
    codecs = json.loads(Path("out/config.json").read_text(encoding="utf-8"))["quantization_config"]["codecs"]
    assert {c["kind"] for c in codecs} == {"int4", "int8"}
    assert terakoya("generate", "out", "寺子屋", "--max-tokens", 3).code == 0
    assert terakoya("convert", "out", "plain").code == 0
    assert not packed_layers(load(Path("plain")).model)


def test_keys_and_values_alone(model: Path, terakoya: Terakoya) -> None:
    said = terakoya(
        "quantize", model, "--to", "none", "--memory", "int8", "--text", "text.txt", "--limit", 300, "--no-speed"
    )
    assert said.code == 0, said.err
    assert "keys and values in int8" in said.out
    assert re.search(r"bits per byte [+-]0\.\d+%, KL 0\.\d+", said.out)


def test_convert_to_gguf(model: Path, terakoya: Terakoya) -> None:
    said = terakoya("convert", model, "m.gguf", "--to", "gguf", "--type", "q8_0")
    assert said.code == 0, said.err
    assert "Q8_0" in said.out
    assert terakoya("generate", "m.gguf", "寺子屋", "--max-tokens", 3).code == 0
    again = terakoya("convert", model, "m.gguf", "--to", "gguf")
    assert again.code == 2
    assert "exists already" in again.err


WRONG = (
    ("--to int5", "'int5'", "did you mean"),
    ("--to nf4 --method gptq", "int4 and int8 only"),
    ("--to int4 --method awq", "--calibrate TEXT"),
    ("--to int4 --calibrate text.txt", "gptq or awq"),
    ("--to int4 --group 48", "groups of 48", "layers.0"),
    ("--to nf4 --group 32", "group"),
    ("--to q4_k", "blocks of 256"),
    ("--to int4 --method gptq --calibrate nowhere", "nowhere", "does not exist"),
    ("--to int8 --text nowhere", "nowhere"),
    ("--to int8 --out model", "exists already"),
    ("--to none", "packs nothing"),
)


@pytest.mark.parametrize("words", WRONG, ids=[w[0] for w in WRONG])
def test_mistakes_are_one_line(words: tuple[str, ...], model: Path, terakoya: Terakoya) -> None:
    said = terakoya("quantize", model, *words[0].split())
    assert said.code == 2
    assert said.err.count("\n") == 1
    for word in words[1:]:
        assert word in said.err
    assert not Path("out").exists()
