"""Log-probabilities as OpenAI writes them, of answers and of prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from terakoya.engine.request import Logprob
from terakoya.model.context import Packed
from terakoya.serve.shelf import Served
from terakoya.tokenizer import Tokenizer

ROWS = 128  # of logits at once: a prompt of 8192 tokens times the vocabulary would be gigabytes
LOWEST = -9999.0  # for -inf, which JSON has not


def spelt(tokenizer: Tokenizer, id: int) -> bytes:
    """The bytes of a token; of a control token, its name."""
    found = tokenizer.token_bytes(id)
    return found or next((name.encode() for name, i in tokenizer.specials.items() if i == id), b"")


def chat_logprobs(served: Served, logprobs: Iterable[Logprob]) -> list[dict[str, Any]]:
    """The list `logprobs.content` of chat; the token that ended the answer is not in it."""
    found = []
    for one in logprobs:
        row = _token(served.tokenizer, one.id, one.logprob)
        row["top_logprobs"] = [_token(served.tokenizer, id, value) for id, value in one.top]
        found.append(row)
    return found


def _token(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    raw = spelt(tokenizer, id)
    return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, LOWEST), "bytes": list(raw)}


class Legacy:
    """The object `logprobs` of /v1/completions, as tokens come; offsets count characters from the text's start."""

    def __init__(self, served: Served) -> None:
        self._tokenizer = served.tokenizer
        self._offset = 0

    def of(self, logprobs: Sequence[tuple[int, Logprob | None]]) -> dict[str, Any]:
        """Return the object for some more tokens; None is for the first of a prompt, which nothing foretells."""
        tokens, values, tops, offsets = [], [], [], []
        for id, one in logprobs:
            raw = spelt(self._tokenizer, id)
            text = raw.decode("utf-8", "replace")
            tokens.append(text)
            offsets.append(self._offset)
            self._offset += len(text) if self._tokenizer.token_bytes(id) else 0
            values.append(None if one is None else max(one.logprob, LOWEST))
            tops.append(None if one is None else self._top(one))
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _top(self, one: Logprob) -> dict[str, float]:
        """Best first; of two ids that spell the same, the better stands."""
        found: dict[str, float] = {}
        for id, value in (*one.top, (one.id, one.logprob)):
            found.setdefault(spelt(self._tokenizer, id).decode("utf-8", "replace"), max(value, LOWEST))
        return found


@torch.inference_mode()
def prompt_logprobs(served: Served, ids: Sequence[int], top: int) -> list[Logprob | None]:
    """Score a prompt: what the model gave each of its tokens, and the `top` best at its place; None for the first."""
    model = served.loaded.model
    device = next(model.parameters()).device
    hidden = model(torch.tensor(list(ids), device=device), Packed([len(ids)], device))
    found: list[Logprob | None] = [None]
    for begin in range(0, len(ids) - 1, ROWS):
        wanted = list(ids[begin + 1 : begin + 1 + ROWS])
        rows = model.head(hidden[begin : begin + len(wanted)])[:, : served.engine.vocab].float().log_softmax(-1)
        taken = rows[torch.arange(len(wanted)), torch.tensor(wanted, device=device)].tolist()
        best = rows.topk(top) if top else None
        for i, (id, value) in enumerate(zip(wanted, taken, strict=True)):
            pairs = () if best is None else tuple(zip(best.indices[i].tolist(), best.values[i].tolist(), strict=True))
            found.append(Logprob(id, value, pairs))
    return found
