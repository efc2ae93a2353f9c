"""Tokenizers of Japanese BERTs: words by MeCab, then WordPiece or single characters (Tohoku University, 2019–2023)."""

from __future__ import annotations

import hashlib
import importlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from terakoya.errors import MissingExtra, TerakoyaError
from terakoya.tokenizer.core import Tokenizer
from terakoya.tokenizer.rust import Json, parse, utf8

CLASS = "BertJapaneseTokenizer"
DICTIONARIES = ("unidic_lite", "ipadic", "unidic")  # Python packages, each with a DICDIR
_MARKS = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
_LONGEST = 100  # characters of a word; longer ones are unknown, as BERT has it


@dataclass(frozen=True)
class Words:
    """How a text is cut before pieces are looked up."""

    by: Literal["mecab", "none"] = "mecab"
    dictionary: str | None = "unidic_lite"
    option: str = ""  # of MeCab
    lower: bool = False
    into: Literal["wordpiece", "character"] = "wordpiece"

    def cut(self, text: str) -> list[str]:
        """Cut a text into words, in compatibility form (NFKC)."""
        text = unicodedata.normalize("NFKC", text)
        words = [w.surface for w in _tagger(self.dictionary, self.option)(text)] if self.by == "mecab" else [text]
        return [w.lower() for w in words] if self.lower else words


class Japanese(Tokenizer):
    """A tokenizer that cuts words before it looks up pieces. Its pieces join without spaces."""

    def __init__(self, description: Json, *, words: Words, **more: Any) -> None:
        super().__init__(description, **more)
        self.words = words

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts."""
        for i, text in enumerate(texts):
            utf8("text" if len(texts) == 1 else f"text {i}", text)
        return super().encode_batch([" ".join(self.words.cut(text)) for text in texts])

    def _run(self, text: str, opens: bool) -> list[int]:
        return super()._run(" ".join(self.words.cut(text)), opens)

    def hash(self) -> str:
        """Sha256 over the vocabulary and the way words are cut."""
        return hashlib.sha256(f"{super().hash()}\n{json.dumps(asdict(self.words))}".encode()).hexdigest()

    @cached_property
    def pieces(self) -> list[str]:
        """Return the vocabulary, in the order of ids."""
        vocab = self.description()["model"]["vocab"]
        return sorted(vocab, key=lambda piece: vocab[piece])

    def save(self, folder: Path) -> None:
        """Write vocab.txt and tokenizer_config.json, as transformers' BertJapaneseTokenizer does."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in self.pieces), encoding="utf-8")
        words = self.words
        config: dict[str, Any] = {"tokenizer_class": CLASS, "do_lower_case": words.lower}
        config |= {"do_word_tokenize": words.by == "mecab", "word_tokenizer_type": "mecab"}
        config |= {"subword_tokenizer_type": words.into, "model_max_length": 512}
        config["mecab_kwargs"] = {"mecab_dic": words.dictionary, "mecab_option": words.option or None}
        config |= {f"{key}_token": name for key, name in _MARKS.items()}
        text = json.dumps(config, ensure_ascii=False, indent=1) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


@cache
def _tagger(dictionary: str | None, option: str) -> Any:
    try:
        import fugashi
    except ImportError:
        raise MissingExtra("fugashi", "ja") from None
    if dictionary is not None:
        try:
            place = Path(importlib.import_module(dictionary).DICDIR)
        except ImportError:
            raise MissingExtra(dictionary, "ja") from None
        if not place.is_dir():
            raise TerakoyaError(f"dictionary {dictionary}", "has not been downloaded", hint=f"python -m {dictionary}")
        option = f'-d "{place}" -r "{place / "mecabrc"}" {option}'
    return fugashi.GenericTagger(option)  # pyright: ignore[reportAttributeAccessIssue] - compiled


def is_japanese(folder: Path) -> bool:
    """Tell whether a folder's tokenizer cuts words by a dictionary."""
    config = folder / "tokenizer_config.json"
    return (folder / "vocab.txt").is_file() and config.is_file() and _config(config).get("tokenizer_class") == CLASS


def load(folder: Path) -> Japanese:
    """Read vocab.txt and tokenizer_config.json of a BertJapaneseTokenizer."""
    place = folder / "tokenizer_config.json"
    config = _config(place)
    mecab = config.get("mecab_kwargs") or {}
    sort, into = config.get("word_tokenizer_type", "basic"), config.get("subword_tokenizer_type", "wordpiece")
    cuts = config.get("do_word_tokenize", True)
    if cuts and sort != "mecab":
        raise TerakoyaError(f"{place}: word_tokenizer_type", given=sort, allowed=["mecab"])
    if into not in ("wordpiece", "character"):
        raise TerakoyaError(f"{place}: subword_tokenizer_type", given=into, allowed=["wordpiece", "character"])
    dictionary = mecab.get("mecab_dic", "unidic_lite")
    if dictionary is not None and dictionary not in DICTIONARIES:
        raise TerakoyaError(f"{place}: mecab_dic", given=dictionary, allowed=[*DICTIONARIES, None])
    if mecab.get("normalize_text", True) is not True:
        raise TerakoyaError(f"{place}: normalize_text", given=mecab["normalize_text"], allowed=[True])
    lower = bool(config.get("do_lower_case", False))
    words = Words("mecab" if cuts else "none", dictionary, mecab.get("mecab_option") or "", lower, into)
    text = (folder / "vocab.txt").read_text(encoding="utf-8")
    return japanese(text.removesuffix("\n").split("\n"), words, name=folder.name)


def japanese(pieces: Sequence[str], words: Words, *, name: str = "japanese") -> Japanese:
    """Make a tokenizer of a vocabulary, whose marks are [UNK], [CLS], [SEP], [PAD] and [MASK]."""
    vocab = {piece: id for id, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        twice = next(p for i, p in enumerate(pieces) if vocab[p] != i)
        raise TerakoyaError(f"{name}: vocab.txt", "holds a piece twice", given=twice)
    lost = [mark for mark in _MARKS.values() if mark not in vocab]
    if lost:
        raise TerakoyaError(f"{name}: vocab.txt", "lacks marks", given=lost)
    spaces: Json = {"type": "WhitespaceSplit"}
    each: Json = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    parts = words.into == "wordpiece"
    model: Json = {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    if parts:
        model |= {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": _LONGEST}
    join: Json = {"type": "Replace", "pattern": {"String": "##"}, "content": ""}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    description: Json = {
        "version": "1.0",
        "added_tokens": [
            {"id": vocab[mark], "content": mark, "special": True} | flags
            for mark in sorted(_MARKS.values(), key=vocab.__getitem__)
        ],
        "normalizer": None,
        "pre_tokenizer": spaces if parts else {"type": "Sequence", "pretokenizers": [spaces, each]},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [join, {"type": "Fuse"}]} if parts else {"type": "Fuse"},
        "model": model,
    }
    marks = {"bos": vocab["[CLS]"], "eos": vocab["[SEP]"], "pad": vocab["[PAD]"]}
    return Japanese(description, words=words, name=name, **marks)


def _config(path: Path) -> Json:
    try:
        return parse(str(path), path.read_bytes())
    except OSError as error:
        raise TerakoyaError(str(path), f"cannot be read: {error.strerror}") from None
