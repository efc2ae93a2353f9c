"""Tokenizers on disk: our folder (which transformers opens), any tokenizer.json, SentencePiece .model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import japanese, sentencepiece
from terakoya.tokenizer.core import Tokenizer
from terakoya.tokenizer.rust import Json, parse, understood
from terakoya.tokenizer.templates import TEMPLATES, recognise, to_jinja

_LARGEST = 256 << 20  # bytes; the largest published tokenizer.json is about 35 MB
_MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
# A bare tokenizer.json does not say what its tokens are for; these names do.
_USUAL = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>", "[CLS]"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[SEP]"),
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
}


def load(path: Path | str) -> Tokenizer:
    """Read a tokenizer from a folder, a tokenizer.json or a SentencePiece .model."""
    path = Path(path)
    if path.is_dir():
        if japanese.is_japanese(path):
            return understood(str(path), lambda: japanese.load(path))
        names = [n for n in ("tokenizer.json", *_MODELS) if (path / n).is_file()]
        if not names:
            raise TerakoyaError(str(path), "holds no tokenizer", allowed=("tokenizer.json", *_MODELS))
        path = path / names[0]
    if path.suffix == ".model":
        return understood(str(path), lambda: sentencepiece.read(str(path), _read(path), path.parent.name or path.stem))
    if path.suffix != ".json":
        raise TerakoyaError(str(path), "is no tokenizer", allowed=("a folder", "tokenizer.json", "a .model file"))
    return understood(str(path), lambda: _from_json(path))


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; `load` and transformers read them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {id: name for name, id in tokenizer.specials.items()}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for key, id in (("bos", tokenizer.bos), ("eos", tokenizer.eos), ("pad", tokenizer.pad)):
        if id is not None:
            config[f"{key}_token"] = names[id]
    jinja = to_jinja(TEMPLATES[tokenizer.template]) if tokenizer.template else tokenizer.jinja
    if jinja:
        config["chat_template"] = jinja
    config["terakoya"] = {"name": tokenizer.name, "template": tokenizer.template}
    _write(folder / "tokenizer.json", tokenizer.description())
    _write(folder / "tokenizer_config.json", config)


def _from_json(path: Path) -> Tokenizer:
    description = parse(str(path), _read(path))
    beside = path.with_name("tokenizer_config.json")
    config = parse(str(beside), _read(beside)) if beside.is_file() else {}
    ours = config.get("terakoya")
    ours = ours if isinstance(ours, dict) else {}
    ids = _ids(description)
    marks = {key: _mark(str(beside), config, key, ids) for key in _USUAL}
    source = _template(path, config)
    template = ours.get("template") or recognise(source)
    name = ours.get("name") or path.parent.name or path.stem
    return Tokenizer(description, name=str(name), template=template, jinja=source, **marks)


def _ids(description: Json) -> dict[str, int]:
    """Ids of the tokens that may be bos, eos or pad; a malformed file is left for Tokenizer to name."""
    added = description.get("added_tokens")
    found = (
        {t["content"]: t["id"] for t in added if isinstance(t, dict) and "content" in t and "id" in t}
        if (isinstance(added, list))
        else {}
    )
    model = description.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        return vocab | found
    return found


def _mark(place: str, config: Json, key: str, ids: dict[str, int]) -> int | None:
    value = config.get(f"{key}_token")
    if isinstance(value, dict):
        value = value.get("content")
    if value is None:
        return None if config else next((ids[n] for n in _USUAL[key] if n in ids), None)
    if not isinstance(value, str) or value not in ids:
        raise TerakoyaError(f"{place} {key}_token", "is no token of this vocabulary", given=value)
    return ids[value]


def _template(path: Path, config: Json) -> str | None:
    """The Jinja text that came with the files."""
    beside = path.with_name("chat_template.jinja")
    if beside.is_file():
        return _read(beside).decode("utf-8", "replace")
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {v.get("name"): v.get("template") for v in value if isinstance(v, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise TerakoyaError(str(path), f"cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise TerakoyaError(str(path), f"is larger than {_LARGEST >> 20} MiB; that is no tokenizer")
    return data


def _write(path: Path, value: Json) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
