"""Japanese BERT's tokenizers equal transformers' on MeCab's words; what is saved opens there and here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Tokenizer
from terakoya.tokenizer.japanese import Japanese, Words, japanese

pytest.importorskip("fugashi", reason="needs terakoya[ja]")
pytest.importorskip("unidic_lite", reason="needs terakoya[ja]")

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "今日は良い天気です。",
    "ﾊﾝｶｸのカナと　全角の空白",
    "吾輩は猫である。名前はまだ無い。",
    "Transformer は 2017年に発表された",
    "家族👨‍👩‍👧‍👦の絵文字と改行\nタブ\tも",
    "",
    "   ",
    "㍿寺子屋ｶﾞﾗｽ①",
]
LETTERS = sorted(
    {c for text in TEXTS for c in text if not c.isspace() and c not in "👨👩"} | set("カガラスハンク株式会社1")
)
WORDS = ["今日", "天気", "吾輩", "寺", "##子屋", "Trans", "##former", "##former", "##ガ", "##ン", "##カク", "名前"]
VOCAB = list(dict.fromkeys([*MARKS, *LETTERS, *(f"##{c}" for c in LETTERS[::2]), *WORDS]))


def made(into: str, **more: bool) -> Japanese:
    return japanese(VOCAB, Words(into=into, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("lower", [False, True], ids=["cased", "lower"])
@pytest.mark.parametrize("into", ["wordpiece", "character"])
def test_equals_transformers(into: str, lower: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs terakoya[reference]")
    ours = made(into, lower=lower)
    ours.save(tmp_path)
    theirs = transformers.BertJapaneseTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize("into", ["wordpiece", "character"])
def test_survives_saving(into: str, tmp_path: Path) -> None:
    ours = made(into)
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert isinstance(again, Japanese)
    assert again.words == ours.words
    assert again.pieces == VOCAB
    assert [again.encode(t) for t in TEXTS] == [ours.encode(t) for t in TEXTS]
    assert again.hash() == ours.hash()


def test_text_cannot_become_a_mark_and_trusted_text_can() -> None:
    ours = made("wordpiece")
    marks = set(range(len(MARKS))) - {1}
    assert not marks & set(ours.encode("今日は[MASK]です[SEP]"))
    assert ours.encode_trusted("今日は[MASK]です。").count(4) == 1


def test_pieces_join_without_spaces() -> None:
    ours = made("wordpiece")
    assert ours.decode(ours.encode("今日は天気。")) == "今日は天気。"


def test_bad_files_say_what_is_wrong(tmp_path: Path) -> None:
    made("character").save(tmp_path)
    place = tmp_path / "tokenizer_config.json"
    config = json.loads(place.read_text(encoding="utf-8"))
    for change, said in (
        ({"word_tokenizer_type": "jumanpp"}, "jumanpp"),
        ({"subword_tokenizer_type": "sentencepiece"}, "sentencepiece"),
        ({"mecab_kwargs": {"mecab_dic": "neologd"}}, "neologd"),
    ):
        place.write_text(json.dumps(config | change), encoding="utf-8")
        with pytest.raises(TerakoyaError, match=said):
            Tokenizer.load(tmp_path)
    with pytest.raises(TerakoyaError, match="lacks marks"):
        japanese(["あ", "い"], Words())
    with pytest.raises(TerakoyaError, match="twice"):
        japanese([*MARKS, "あ", "あ"], Words())
