"""Learn a vocabulary from text: pairs (bpe), likelihood (unigram), or none at all (bytes, chars)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from tempfile import TemporaryFile
from typing import Any, TextIO

from terakoya.errors import TerakoyaError, nearest
from terakoya.tokenizer.core import Tokenizer
from terakoya.tokenizer.pattern import TERAKOYA
from terakoya.tokenizer.pieces import byte_letters
from terakoya.tokenizer.rust import Json, guarded, utf8

KINDS = ("bpe", "unigram", "bytes", "chars")
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_BYTES = tuple(f"<0x{b:02X}>" for b in range(256))
_UNKNOWN = "<unk>"


def train(
    texts: Iterable[str],
    kind: str,
    vocab: int,
    specials: Sequence[str] = SPECIALS,
    *,
    name: str | None = None,
    once: int = 2,
) -> Tokenizer:
    """Train a tokenizer on a stream of texts; every kind gives back any text exactly.

    `vocab` is the most ids it may have, control tokens and the 256 bytes included; a small corpus gives fewer. `once`
    is how often a BPE pair must occur to become a piece. `<|endoftext|>`, or else the first of `specials`, ends
    documents; `<s>` and `</s>` together stand round them. The same texts give the same tokenizer, but for unigram:
    the library sums its likelihoods in no fixed order.
    """
    if kind not in KINDS:
        raise TerakoyaError("tokenizer kind", "is not known", given=kind, allowed=KINDS, hint=nearest(kind, KINDS))
    specials = _checked(specials)
    least = 256 + len(specials) + (kind == "unigram")
    if vocab < least:
        raise TerakoyaError("vocab", f"must be at least {least} for {kind}: bytes and control tokens", given=vocab)
    make = {"bpe": _bpe, "unigram": _unigram, "bytes": _bytes, "chars": _chars}[kind]
    description = make(_Checked(texts), vocab, specials, once)
    ids = {token["content"]: token["id"] for token in description["added_tokens"]}
    end = ids.get("<|endoftext|>", ids[specials[0]] if specials else None)
    bos, eos = (ids["<s>"], ids["</s>"]) if {"<s>", "</s>"} <= set(ids) else (end, end)
    template = "chatml" if {"<|im_start|>", "<|im_end|>"} <= set(ids) else None
    return Tokenizer(description, name=name or kind, bos=bos, eos=eos, template=template)


class _Checked:
    """The texts, one by one, each proved to be Unicode; an error is kept, for Rust would reword it."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.error: BaseException | None = None
        self.count = 0

    def __iter__(self) -> Iterator[str]:
        try:
            for i, text in enumerate(self._texts):
                utf8(f"training text {i}", text)
                self.count += 1
                yield text
        except Exception as error:
            self.error = error
            raise

    def settle(self) -> None:
        """Raise what went wrong while reading, or that there was nothing to read."""
        if self.error:
            raise self.error
        if not self.count:
            raise TerakoyaError("training texts", "are empty")


def _checked(specials: Sequence[str]) -> tuple[str, ...]:
    for special in specials:
        utf8("control token", special)
        if not special.strip() or special in _BYTES or special == _UNKNOWN:
            raise TerakoyaError("control token", "is blank or reserved", given=special)
    if len(set(specials)) != len(specials):
        raise TerakoyaError("control tokens", "are named twice", given=list(specials))
    return tuple(specials)


def _bpe(texts: _Checked, vocab: int, specials: Sequence[str], once: int) -> Json:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    rust = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(TERAKOYA), "isolated"), level])  # type: ignore[assignment]
    rust.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=once,
        special_tokens=list(specials),
        initial_alphabet=list(byte_letters()),
        show_progress=False,
    )
    return _trained(rust, texts, trainer)


def _unigram(texts: _Checked, vocab: int, specials: Sequence[str], once: int) -> Json:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    rust = Tokenizer(models.Unigram())
    rust.pre_tokenizer = pre_tokenizers.Split(Regex(TERAKOYA), "isolated")  # type: ignore[assignment]
    room = vocab - len(specials) - 1 - 256
    trainer = trainers.UnigramTrainer(
        vocab_size=room + 2, special_tokens=[_UNKNOWN], unk_token=_UNKNOWN, show_progress=False
    )
    with TemporaryFile("w+", encoding="utf-8") as file:
        learnt = _trained(rust, _common(texts, max(room // 2, 1), file), trainer)["model"]["vocab"]
    rows = sorted((r for r in learnt if r[0] != _UNKNOWN), key=lambda r: (-r[1], r[0]))[:room]
    low = min((r[1] for r in rows), default=-1.0)
    head = [*([s, 0.0] for s in specials), [_UNKNOWN, 0.0], *([b, low] for b in _BYTES)]
    model = {"type": "Unigram", "unk_id": len(specials), "vocab": head + rows, "byte_fallback": True}
    return _described(model, {s: i for i, s in enumerate(specials)}, pre_tokenizer=_split(TERAKOYA))


def _chars(texts: _Checked, vocab: int, specials: Sequence[str], once: int) -> Json:
    seen: Counter[str] = Counter()
    for text in texts:
        seen.update(text)
    texts.settle()
    room = vocab - len(specials) - 256
    chars = sorted(seen, key=lambda c: (-seen[c], c))[:room]
    pieces = [*specials, *_BYTES, *chars]
    return _described(_pairless({p: i for i, p in enumerate(pieces)}), {s: i for i, s in enumerate(specials)})


def _bytes(texts: _Checked, vocab: int, specials: Sequence[str], once: int) -> Json:
    pieces = [*byte_letters(), *specials]  # byte b has the id b
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = _pairless({p: i for i, p in enumerate(pieces)}) | {"byte_fallback": False}
    described = _described(model, {s: 256 + i for i, s in enumerate(specials)}, pre_tokenizer=level)
    return described | {"decoder": level}


def _common(texts: _Checked, most: int, file: TextIO) -> _Checked:
    """The texts, read once and kept in `file`, with rare characters cut out: these are left to the bytes.

    The trainer would give every character a piece, and refuse a vocabulary that has not room for all of them. Kept
    are the `most` frequent, or fewer if they make up 99.95 % (SentencePiece's default for Japanese).
    """
    seen: Counter[str] = Counter()
    for text in texts:
        seen.update(text)
        file.write(json.dumps(text) + "\n")
    texts.settle()
    file.seek(0)
    kept, left = set(), seen.total() * 0.9995
    for char in sorted(seen, key=lambda c: (-seen[c], c))[:most]:
        if left <= 0:
            break
        kept.add(char)
        left -= seen[char]
    rare = dict.fromkeys(map(ord, set(seen) - kept), "\n" if "\n" in kept else None)
    return _Checked(json.loads(line).translate(rare) for line in file)


def _trained(rust: Any, texts: _Checked, trainer: Any) -> Json:
    try:
        guarded("training", lambda: rust.train_from_iterator(texts, trainer=trainer))
    except TerakoyaError:
        texts.settle()
        raise
    texts.settle()
    return json.loads(rust.to_str())


def _pairless(vocab: dict[str, int]) -> Json:
    """A BPE model without merges: every character by itself, or its bytes."""
    return {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": True, "unk_token": None}


def _split(pattern: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _described(model: Json, specials: dict[str, int], *, pre_tokenizer: Json | None = None) -> Json:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": name, **flags} for name, id in specials.items()],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": model,
    }
