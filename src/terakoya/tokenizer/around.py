"""What a tokenizer's file puts round a text: its post-processor."""

from __future__ import annotations

from typing import Any

from terakoya.errors import TerakoyaError


def around(name: str, processor: Any) -> tuple[list[int], list[int]]:
    """Return the ids before and after a single text by the `post_processor` of a tokenizer.json.

    BART: `<s>` and `</s>`; T5: nothing and `</s>`; mBART: nothing and `</s>` with the language. Raises TerakoyaError
    for one that is not laid out as `tokenizers` writes it.
    """
    try:
        return _around(processor)
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError):
        kind = processor.get("type") if isinstance(processor, dict) else processor
        raise TerakoyaError(name, "has a post-processor that cannot be read", given=kind) from None


def _around(processor: Any) -> tuple[list[int], list[int]]:
    if processor is None:
        return [], []
    kind = processor["type"]
    if kind == "Sequence":
        before, after = [], []
        for inner in processor["processors"]:  # each takes what the ones before it have made
            first, last = _around(inner)
            before, after = first + before, after + last
        return before, after
    if kind in ("BertProcessing", "RobertaProcessing"):
        return [int(processor["cls"][1])], [int(processor["sep"][1])]
    if kind != "TemplateProcessing":  # ByteLevel moves places in the text, not ids
        return [], []
    pieces = processor["single"]
    text = next(i for i, piece in enumerate(pieces) if "Sequence" in piece)
    ids = [
        [] if "Sequence" in piece else list(processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
        for piece in pieces
    ]
    return [id for some in ids[:text] for id in some], [id for some in ids[text:] for id in some]
