"""Text to ids and back. User text can never become a control token; every id is a string of bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from terakoya.errors import TerakoyaError, nearest
from terakoya.tokenizer.around import around
from terakoya.tokenizer.pieces import Spelling
from terakoya.tokenizer.plain import inner, plain, vocabulary
from terakoya.tokenizer.rust import Json, build, guarded, utf8
from terakoya.tokenizer.stream import Stream
from terakoya.tokenizer.templates import TEMPLATES, Template

Part = tuple[str, bool]  # text, and whether control tokens in it are meant

_MARK = re.compile(r"[<\[]\S+[>\]]")
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")  # what closes a document, where eos may close only a turn
_TURNS = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>")
# Markup that vocabularies hold as ordinary pieces (Gemma's HTML): text, not control.
_HTML = re.compile(
    r"a|b|i|u|p|s|[bht]r|h[1-6]|[ou]l|li|t[dh]|su[bp]|pre|div|img|code|span|d[ldt]|em|strong|"
    r"table|t(head|body|foot)|caption|blockquote",
    re.IGNORECASE,
)


class Tokenizer:
    """A vocabulary, its rules, and what its control tokens are for.

    Built from the contents of a tokenizer.json by `load`, `from_gguf` or `train`. `specials` maps every control token
    to its id; `encode` yields none of these ids whatever the text says.
    """

    def __init__(
        self,
        description: Json,
        *,
        name: str = "tokenizer",
        bos: int | None = None,
        eos: int | None = None,
        pad: int | None = None,
        template: str | None = None,
        jinja: str | None = None,
    ) -> None:
        description = _settled(description)
        pieces = vocabulary(name, description)
        self.name, self.bos, self.eos, self.pad = name, bos, eos, pad
        self.jinja = jinja  # the chat template that came with the files, kept as text, never run
        self.vocab_size = max(pieces) + 1
        self.unk = _unknown(description, pieces)
        self.specials: Mapping[str, int] = MappingProxyType(_controls(description, pieces, self.unk, (bos, eos, pad)))
        self.template = _known(template)
        self.around = around(name, description.get("post_processor"))  # ids before and after a text, as its file says
        self._description: Json | None = description  # until somebody asks for its text
        self._text = ""
        self._build(description, pieces)

    def _build(self, description: Json, pieces: Mapping[int, str]) -> None:
        unknown = None if self.unk is None else pieces[self.unk]
        self._spelling = Spelling(self.name, description)
        self._spelling.bytes("a")  # what cannot be spelt is said now; the pieces are spelt as they are used
        self._bytes: list[bytes | None] = [None] * self.vocab_size
        self._pieces = pieces
        self._added = {t["id"] for t in description["added_tokens"]}
        self._names = {id: piece for piece, id in self.specials.items()}
        bare = plain(self.name, description, dict(pieces), self.specials, unknown)
        inside, self._scheme = inner(bare)
        self._plain = build(self.name, bare)
        self._inner = self._plain if self._scheme == "never" else build(self.name, inside)
        self._marks = _matcher(description, self.specials)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, {self.vocab_size} ids, {len(self.specials)} control tokens)"

    # ---- text to ids

    def encode(self, text: str) -> list[int]:
        """Encode text that anyone may have written: never a control token, whatever it contains."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts on all cores; the same ids as `encode` of each."""
        texts = list(texts)
        try:
            found = guarded(self.name, lambda: self._plain.encode_batch_fast(texts, add_special_tokens=False))
        except TerakoyaError:
            for i, text in enumerate(texts):  # the likely reason, said better
                utf8("text" if len(texts) == 1 else f"text {i}", text)
            raise
        return [e.ids for e in found]

    def encode_trusted(self, text: str) -> list[int]:
        """Encode text that we wrote (templates): the names of control tokens become their ids."""
        return self.encode_parts([(text, True)])

    def encode_parts(self, parts: Sequence[Part], *, after: int | None = None) -> list[int]:
        """Encode joined parts `(text, trusted)`: a control token must lie whole inside one trusted part.

        Between control tokens the text is encoded as one, so merges do not care where the parts meet. `after` is the
        id that stands before, None at the start of a text (where SentencePiece puts a space).
        """
        text = "".join(t for t, _ in parts)
        utf8("text", text)
        ids: list[int] = []
        at, opens = 0, after is None or (self._scheme == "always" and after in self._names)
        for begin, end, id in self._controls_in(text, parts):
            ids += self._run(text[at:begin], opens)
            ids.append(id)
            at, opens = end, self._scheme == "always"
        return ids + self._run(text[at:], opens)

    def _controls_in(self, text: str, parts: Sequence[Part]) -> list[tuple[int, int, int]]:
        """(begin, end, id) of each control token in the trusted parts, with the spaces that it swallows."""
        found: list[tuple[int, int, int]] = []
        at = 0
        for part, trusted in parts:
            for match in self._marks.pattern.finditer(text, at, at + len(part)) if trusted and self._marks else ():
                begin, end = match.span()
                name = match[0]
                if name in self._marks.left:
                    begin = max(len(text[:begin].rstrip()), found[-1][1] if found else 0)
                if name in self._marks.right:
                    end += len(text[end:]) - len(text[end:].lstrip())
                found.append((begin, end, self.specials[name]))
            at += len(part)
        return found

    def _run(self, text: str, opens: bool) -> list[int]:
        if not text:
            return []
        rust = self._plain if opens else self._inner  # a batch of one: `encode` would hold up all other threads
        return guarded(self.name, lambda: rust.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    # ---- ids to text

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one id stands for; none for a control token."""
        if not 0 <= id < self.vocab_size:
            raise TerakoyaError("token id", f"is outside the vocabulary (0 to {self.vocab_size - 1})", given=int(id))
        found = self._bytes[id]
        if found is None:
            found = self._bytes[id] = self._spelt(id)
        return found

    def _spelt(self, id: int) -> bytes:
        piece = self._pieces.get(id)
        if piece is None or id in self._names:
            return b""
        return piece.encode() if id in self._added or id == self.unk else self._spelling.bytes(piece)

    def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
        """Join the bytes of `ids` and read them as UTF-8; what is none becomes U+FFFD. Control tokens show if asked."""
        found: list[bytes] = []
        bare = self._spelling.strip
        for id in ids:
            piece = self.token_bytes(id)
            if piece and bare:
                piece, bare = piece.removeprefix(b" "), False
            found.append(self._names[id].encode() if specials and id in self._names else piece)
        return b"".join(found).decode("utf-8", "replace")

    def stream(self, *, start: bool = True) -> Stream:
        """Decode as ids come. `start=False`: they continue a text, so a leading space of SentencePiece is theirs."""
        return Stream(self.token_bytes, strip=start and self._spelling.strip)

    @property
    def missing(self) -> frozenset[int]:
        """Bytes of UTF-8 that a byte-level vocabulary has no piece for: `encode` leaves them out, as its makers do."""
        if not self._spelling.byte_level:
            return frozenset()
        have = {piece[0] for piece in map(self.token_bytes, range(self.vocab_size)) if len(piece) == 1}
        return frozenset({*range(0xC0), *range(0xC2, 0xF5)} - have)

    # ---- control tokens

    def wrap(self) -> tuple[list[int], list[int]]:
        """What stands round each document: `([end of text], [])`, or `([bos], [eos])` where both have a name."""
        end = next((self.specials[n] for n in _ENDS if n in self.specials), self.eos)
        turns = {self.specials[n] for n in _TURNS if n in self.specials}
        bos = self.bos if self.bos not in turns else None
        if end is None or bos is None or bos == end:
            first = end if end is not None else bos
            return ([] if first is None else [first]), []
        return [bos], [end]

    @property
    def stops(self) -> frozenset[int]:
        """The ids that end an answer: eos, the end of text, and the stop token of the chat template."""
        known = TEMPLATES.get(self.template or "")
        names = [*_ENDS, *(known.stops if known else ())]
        found = {self.specials[n] for n in names if n in self.specials}
        return frozenset(found | ({self.eos} if self.eos is not None else set()))

    def with_template(self, template: str | Template | None) -> Tokenizer:
        """The same tokenizer with another chat template."""
        name = template.name if isinstance(template, Template) else template
        marks = {"bos": self.bos, "eos": self.eos, "pad": self.pad}
        return Tokenizer(self.description(), name=self.name, template=name, jinja=None, **marks)

    # ---- files

    @property
    def _source(self) -> str:
        """The contents of tokenizer.json, always written in the same way: once, when somebody asks."""
        description = self._description
        if description is not None:
            self._text = json.dumps(description, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
            self._description = None  # last: another thread finds the one or the other
        return self._text

    def description(self) -> Json:
        """The contents of tokenizer.json."""
        return json.loads(self._source)

    def hash(self) -> str:
        """Sha256 over pieces, rules, control tokens and template; the same after save and load."""
        marks = [self.bos, self.eos, self.pad, self.template]
        return hashlib.sha256(f"{json.dumps(marks)}\n{self._source}".encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into `folder`; transformers opens it too."""
        from terakoya.tokenizer.files import save

        save(self, Path(folder))

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read a folder, a tokenizer.json or a SentencePiece .model."""
        from terakoya.tokenizer.files import load

        return load(path)


class _Marks:
    """How control tokens are found in trusted text; those in `left` and `right` swallow the spaces beside them."""

    def __init__(self, names: Iterable[str], left: Iterable[str], right: Iterable[str]) -> None:
        longest_first = sorted(names, key=lambda n: (-len(n), n))
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.left, self.right = frozenset(left), frozenset(right)


def _matcher(description: Json, specials: Mapping[str, int]) -> _Marks:
    added = [t for t in description["added_tokens"] if t["content"] in specials]
    left = [t["content"] for t in added if t.get("lstrip")]
    right = [t["content"] for t in added if t.get("rstrip")]
    return _Marks([n for n in specials if n], left, right)


def _settled(description: Json) -> Json:
    """Without truncation and padding (both would be silent), and with every default written out."""
    model = description.get("model")
    if isinstance(model, dict) and "type" not in model:
        model = {"type": "BPE" if "merges" in model else "WordLevel"} | model
    added = description.get("added_tokens") or []
    return description | {"model": model, "added_tokens": added, "truncation": None, "padding": None}


def _unknown(description: Json, pieces: Mapping[int, str]) -> int | None:
    """The id for what cannot be spelt; None where everything can (byte level, byte fallback counts as spelt)."""
    model = description["model"]
    if model["type"] == "Unigram":
        return model.get("unk_id")
    name = model.get("unk_token")
    return next((id for id, piece in pieces.items() if piece == name), None) if name else None


def _controls(
    description: Json, pieces: Mapping[int, str], unk: int | None, ends: Iterable[int | None]
) -> dict[str, int]:
    found = {t["content"]: t["id"] for t in description["added_tokens"] if _is_control(t)}
    for id in ends:
        if id is not None:
            if id not in pieces:
                raise TerakoyaError("bos, eos or pad", "is no id of this vocabulary", given=id)
            found[pieces[id]] = id
    return {name: id for name, id in sorted(found.items(), key=lambda kv: kv[1]) if id != unk or id in ends}


def _is_control(token: Json) -> bool:
    """Special, or added and looking like a mark (`<think>`, `[INST]`); not whitespace runs, words or HTML."""
    name = token["content"]
    if token.get("special"):
        return True
    return bool(_MARK.fullmatch(name.strip("▁ "))) and not _HTML.fullmatch(name.strip("▁ </>"))


def _known(template: str | None) -> str | None:
    if template is not None and template not in TEMPLATES:
        raise TerakoyaError(
            "chat template", "is not known", given=template, allowed=list(TEMPLATES), hint=nearest(template, TEMPLATES)
        )
    return template
