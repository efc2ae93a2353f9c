"""Searching for an answer instead of drawing one: beam search and contrastive search, for one prompt at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.model.context import Memory
from terakoya.model.model import Model


@dataclass(frozen=True)
class Found:
    """An answer, its log-probability, and that divided by length ** penalty."""

    ids: list[int]
    logprob: float
    score: float


@torch.inference_mode()
def beam(
    model: Model,
    prompt: Sequence[int],
    *,
    width: int = 4,
    tokens: int = 32,
    ends: Collection[int] = (),
    penalty: float = 1.0,
) -> list[Found]:
    """Keep the `width` likeliest beginnings at every length -> the best answers, best first.

    An answer ends with one of `ends` or after `tokens`. Those that ended compete with those that go on by score; the
    search stops where none that goes on can win any more (for penalty >= 0, as logarithms of probabilities fall).
    """
    _check(model, prompt, tokens)
    memory, ending = Memory(), sorted(set(ends))
    logprobs = _read(model, memory, [list(prompt)])[1].log_softmax(-1)
    live: list[Found] = [Found([], 0.0, 0.0)]
    done: list[Found] = []
    length = 0
    for length in range(1, tokens + 1):
        totals = logprobs + torch.tensor([[f.logprob] for f in live])
        count = min((1 + len(ending)) * width, totals.numel())  # enough, should all that end be among the best
        best = totals.flatten().topk(count)
        places, going = [], []
        for value, at in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            row, id = divmod(at, totals.shape[1])
            found = Found([*live[row].ids, id], value, value / length**penalty)
            if id in ending:
                done.append(found)
            elif len(going) < width:
                going.append(found)
                places.append(row)
        live = going
        done = sorted(done, key=lambda f: f.score, reverse=True)[:width]
        best_possible = max((f.logprob for f in live), default=0.0) / max(tokens**penalty, length**penalty)
        if not live or length == tokens or (len(done) == width and done[-1].score >= best_possible):
            break
        _follow(memory, places)
        logprobs = _read(model, memory, [[f.ids[-1]] for f in live])[1].log_softmax(-1)
    if length == tokens:
        done += live
    return sorted(done, key=lambda f: f.score, reverse=True)[:width]


@torch.inference_mode()
def contrastive(
    model: Model,
    prompt: Sequence[int],
    *,
    top_k: int = 4,
    alpha: float = 0.6,
    tokens: int = 32,
    ends: Collection[int] = (),
) -> list[int]:
    """Take what is likely and unlike what was said (Su 2022): (1 - alpha) p - alpha max cos(h, earlier h).

    `h` are the model's last hidden vectors. Each step reads the `top_k` likeliest ids side by side.
    """
    _check(model, prompt, tokens)
    memory = Memory()
    hidden, logits = _read(model, memory, [list(prompt)])
    said, ids = torch.nn.functional.normalize(hidden, dim=-1), []
    for _ in range(tokens):
        best = logits[-1].softmax(-1).topk(min(top_k, logits.shape[-1]))
        _follow(memory, [0] * len(best.indices))
        hidden, logits = _read(model, memory, [[id] for id in best.indices.tolist()])
        new = torch.nn.functional.normalize(hidden, dim=-1)
        at = int(((1 - alpha) * best.values - alpha * (new @ said.T).max(-1).values).argmax())
        ids.append(int(best.indices[at]))
        if ids[-1] in ends:
            break
        said, logits = torch.cat([said, new[at : at + 1]]), logits[at : at + 1]
        _follow(memory, [at])
    return ids


def _read(model: Model, memory: Memory, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Append to every sequence -> (hidden (T, D), logits after the last of each (N, V)), float32."""
    device = next(model.parameters()).device
    ctx = memory.step([len(some) for some in ids], device)
    hidden = model(torch.tensor([id for some in ids for id in some], device=device), ctx)
    ctx.close()
    last = torch.tensor([end - 1 for end in ctx.cu[1:]], device=device)
    return hidden.float().cpu(), model.head(hidden[last]).float().cpu()


def _follow(memory: Memory, rows: list[int]) -> None:
    """Let each sequence go on from what sequence rows[n] remembers."""
    at = torch.tensor(rows)
    memory.lengths = [memory.lengths[row] for row in rows]
    memory.keys = {layer: (k[at.to(k.device)], v[at.to(v.device)]) for layer, (k, v) in memory.keys.items()}
    memory.states = {layer: tuple(t[at.to(t.device)] for t in ts) for layer, ts in memory.states.items()}


def _check(model: Model, prompt: Sequence[int], tokens: int) -> None:
    most = model.spec.context - tokens
    if not 0 < len(prompt) <= most:
        raise TerakoyaError("prompt", "tokens, with room for the answer", given=len(prompt), allowed=f"1 to {most}")
