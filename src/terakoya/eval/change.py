"""What a changed model says otherwise: bits per byte of both, divergence and agreement, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.eval.perplexity import Score, windows
from terakoya.model.context import Context, Packed
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer

ROWS = 128  # tokens whose logits are held at once


@dataclass(frozen=True)
class Change:
    """`divergence`: mean KL(before ‖ after) in nats per token; `same`: share of tokens with the same likeliest next."""

    before: Score
    after: Score
    divergence: float
    same: float

    @property
    def worse(self) -> float:
        """By what share bits per byte went up."""
        return self.after.bits_per_byte / self.before.bits_per_byte - 1


@torch.inference_mode()
def compare(
    before: Model, after: Model, tokenizer: Tokenizer, texts: Iterable[str], *, window: int | None = None,
    reading: Callable[[Sequence[int], torch.device], Context] = Packed,
) -> Change:  # fmt: skip
    """Score texts by both models, each token once, as `score` does; `reading` makes the context of the second."""
    limit = window or min(before.spec.context, 2048)
    if not 2 <= limit <= before.spec.context:
        raise TerakoyaError("window", given=limit, allowed=f"2 to the model's context, {before.spec.context}")
    prefix, suffix = tokenizer.wrap()
    device = next(before.parameters()).device
    nats, divergence, same, tokens, size = [0.0, 0.0], 0.0, 0, 0, 0
    for text in texts:
        ids = [*prefix, *tokenizer.encode(text), *suffix]
        for begin, end, first in windows(len(ids), limit):
            piece = torch.tensor(ids[begin:end], device=device)
            ways = ((before, Packed), (after, reading))
            vectors = [m(piece[:-1], way([len(piece) - 1], device))[first - begin - 1 :] for m, way in ways]
            wanted = piece[first - begin :]
            for a in range(0, len(wanted), ROWS):
                p, q = (_logs(m, v[a : a + ROWS]) for m, v in zip((before, after), vectors, strict=True))
                for i, logs in enumerate((p, q)):
                    nats[i] -= logs.gather(1, wanted[a : a + ROWS, None]).double().sum().item()
                divergence += (p.exp() * (p - q)).double().sum().item()
                same += int((p.argmax(-1) == q.argmax(-1)).sum())
            tokens += end - first
        size += len(text.encode()) - (0 if prefix else len(tokenizer.token_bytes(ids[0]) if ids else b""))
    if not tokens:
        raise TerakoyaError("text", "has nothing to score", hint="give a text of two tokens or more")
    one, two = (Score(n, tokens, size) for n in nats)
    return Change(one, two, divergence / tokens, same / tokens)


def _logs(model: Model, hidden: Tensor) -> Tensor:
    return torch.log_softmax(model.head(hidden).float(), -1)
