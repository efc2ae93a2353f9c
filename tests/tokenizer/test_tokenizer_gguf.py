"""Tokenizers of GGUF files: the real SmolLM2, and SentencePiece models told as llama.cpp tells them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Tokenizer, from_gguf
from terakoya.tokenizer.pieces import byte_letters
from tests.tokenizer.texts import CORPUS, texts

LAW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_smollm(smollm: Tokenizer) -> None:
    assert (smollm.vocab_size, smollm.bos, smollm.eos, smollm.pad) == (49152, 1, 2, 2)
    assert smollm.specials["<|im_start|>"] == 1
    assert smollm.specials["<|im_end|>"] == 2
    assert len(smollm.specials) == 17
    assert smollm.wrap() == ([0], [])
    assert smollm.stops == {0, 2}
    assert smollm.template == "smollm2"
    assert smollm.encode("Hello, world! 2024") == [19556, 28, 905, 17, 216, 34, 32, 34, 36]
    assert smollm.decode([19556, 28, 905, 17]) == "Hello, world!"


def test_arrays_may_be_numpy(metadata: dict[str, Any], smollm: Tokenizer) -> None:
    arrays = {k: np.array(v) if isinstance(v, list) and not isinstance(v[0], str) else v for k, v in metadata.items()}
    arrays["tokenizer.ggml.tokens"] = [t.encode() for t in metadata["tokenizer.ggml.tokens"]]
    assert from_gguf(arrays).hash() == smollm.hash()


def _tiny(**changes: Any) -> dict[str, Any]:
    """Byte-level metadata with few merges; a change to None takes the key away."""
    merges = ["1 2", "12 3", "123 4", "Ġ 1", "' T", "' t"]
    pieces = [*byte_letters(), *(m.replace(" ", "") for m in merges), "<|end|>"]
    kinds = [1] * (len(pieces) - 1) + [3]
    end = len(pieces) - 1
    found = {"model": "gpt2", "pre": "gpt-2", "tokens": pieces, "token_type": kinds, "merges": merges}
    found |= {"bos_token_id": end, "eos_token_id": end} | changes
    return {f"tokenizer.ggml.{k}": v for k, v in found.items() if v is not None}


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["N", "'", "T", " ", "1234", "\n", "1234"]),
        ("smollm", ["N", "'", "T", " ", "1", "2", "3", "4", "\n", "1", "2", "3", "4"]),
        ("llama-bpe", ["N", "'T", " ", "123", "4", "\n", "123", "4"]),
        ("qwen2", ["N", "'T", " ", "1", "2", "3", "4", "\n", "1", "2", "3", "4"]),
    ],
)
def test_digits_and_contractions(pre: str, pieces: list[str]) -> None:
    one = from_gguf(_tiny(pre=pre))
    assert one.wrap() == ([one.vocab_size - 1], [])
    assert [one.decode([i]) for i in one.encode("N'T 1234\n1234")] == pieces


@pytest.fixture(scope="module")
def llama() -> tuple[Any, Tokenizer]:
    """A SentencePiece BPE model with bytes, and the same as GGUF metadata."""
    spm = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS * 10 for line in text.splitlines()]),
        model_writer=model,
        vocab_size=600,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        num_threads=1,
    )
    theirs = spm.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(theirs.get_piece_size())
    kinds = [2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in ids]
    told = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": np.array([theirs.get_score(i) for i in ids], np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(theirs.bos_id()),
        "tokenizer.ggml.eos_token_id": np.uint32(theirs.eos_id()),
        "tokenizer.ggml.unknown_token_id": np.uint32(theirs.unk_id()),
    }
    return theirs, from_gguf(told)


@LAW
@given(text=texts())
def test_scored_pieces_give_the_ids_of_sentencepiece(llama: tuple[Any, Tokenizer], text: str) -> None:
    theirs, ours = llama
    if "\x00" in text:
        return  # the library ends a text there
    assert ours.encode(text) == theirs.encode(text)
    if "▁" not in text:  # SentencePiece writes a space so; such a letter comes back as one
        assert ours.decode(ours.encode(text)) == text


def test_llama_marks(llama: tuple[Any, Tokenizer]) -> None:
    _, ours = llama
    assert ours.wrap() == ([1], [2])
    assert ours.encode_trusted("<s>猫</s>") == [1, *ours.encode("猫"), 2]


def test_mistakes_are_named() -> None:
    key = "tokenizer.ggml."
    cases: dict[str, dict[str, Any]] = {
        "model: 'rwkv' is not supported": {"model": "rwkv"},
        "pre: 'smolm' is not known.*did you mean 'smollm'": {"pre": "smolm"},
        "pre: is not known": {"pre": None},
        "tokens: is missing": {"tokens": None},
        "tokens: 'a' stands twice": {"tokens": ["a", "a"], "token_type": None, "merges": []},
        "token_type: has 1 rows": {"token_type": [1]},
        "merges\\[0\\]": {"merges": ["lonely"]},
        "is malformed": {"token_type": ["x"] * 263},
        "bos_token_id: 99999999 is outside": {"bos_token_id": 99999999},
    }
    for match, change in cases.items():
        with pytest.raises(TerakoyaError, match=match) as caught:
            from_gguf(_tiny(**change))
        assert "\n" not in str(caught.value)
    with pytest.raises(TerakoyaError, match="scores: are needed"):
        from_gguf({f"{key}model": "llama", f"{key}tokens": ["<unk>", "a"]})
