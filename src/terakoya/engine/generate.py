"""Prompt in, tokens out, one by one. What is not streamed is the joined stream, by construction."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from terakoya.engine.sampling import History, Sampling, alone, draw, penalise, process
from terakoya.engine.stop import Stop
from terakoya.errors import TerakoyaError
from terakoya.model.context import Memory
from terakoya.model.model import Model
from terakoya.model.spec import continues

if TYPE_CHECKING:
    from terakoya.tokenizer import Tokenizer

Finish = Literal["stop", "length", "end"]
CHUNK = 512  # prompt tokens read at a time: what a step needs beside the memory is bounded


@dataclass(frozen=True)
class Token:
    """One step. `text` is what may be shown now: whole characters, sometimes none, sometimes those of earlier steps."""

    id: int
    text: str
    logprob: float  # under the distribution it was drawn from (greedy: 0)
    raw: float  # under the model's own distribution
    finish: Finish | None = None  # on the last: a stop string, max_tokens or the context's end, an end token


@dataclass(frozen=True)
class Completion:
    """An answer. `ids` is all that was drawn, an end token and the tokens of a stop string too; `text` has neither."""

    ids: list[int]
    text: str
    finish: Finish
    prompt_tokens: int
    tokens: int
    seconds: float
    seed: int


def complete(
    model: Model, tokenizer: Tokenizer, prompt_ids: Sequence[int], sampling: Sampling, *, choice: int = 0
) -> Completion:
    """Generate to the end. Raises TerakoyaError as `generate` does."""
    began = time.perf_counter()
    seed = _seed(sampling)
    check(model, tokenizer, prompt_ids, sampling)
    tokens = list(_generate(model, tokenizer, prompt_ids, sampling, Memory(), seed, choice))
    finish = tokens[-1].finish
    assert finish is not None
    ids, text = [t.id for t in tokens], "".join(t.text for t in tokens)
    return Completion(ids, text, finish, len(prompt_ids), len(ids), time.perf_counter() - began, seed)


def generate(
    model: Model,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    *,
    memory: Memory | None = None,
    choice: int = 0,
) -> Iterator[Token]:
    """Yield the tokens of an answer as they come.

    A `memory` of one sequence may hold the first ids of the prompt already (all but one at most); it is carried on,
    and holds all but the last id in the end. `choice` tells answers with the same seed apart. Raises TerakoyaError
    at once, before the first token, for a prompt that is empty, is none of this model's, or fills the context.
    """
    memory = Memory() if memory is None else memory
    check(model, tokenizer, prompt_ids, sampling)
    assert len(memory.lengths) == 1
    assert memory.lengths[0] < len(prompt_ids)
    return _generate(model, tokenizer, prompt_ids, sampling, memory, _seed(sampling), choice)


def _generate(
    model: Model,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampling: Sampling,
    memory: Memory,
    seed: int,
    choice: int,
) -> Iterator[Token]:
    history = History(prompt)
    controls = set(tokenizer.specials.values())
    text = tokenizer.stream(start=all(id in controls for id in prompt))
    stop = Stop(sampling.stop)
    most = min(sampling.max_tokens, model.spec.context - len(prompt))
    new = list(prompt[memory.lengths[0] :])
    for i in range(most):
        early = i < sampling.min_tokens
        logits = read(model, memory, new)[: tokenizer.vocab_size]
        banned = tokenizer.stops if early else ()
        with alone():
            id, logprob, raw = _choose(logits, history, sampling, banned, seed, i, choice)
        history.add(id)
        ended = id in tokenizer.stops
        last = ended or i + 1 == most
        piece = text.push(id) + (text.finish() if last else "")
        shown = piece if early else stop.push(piece)
        if stop.found is not None:
            yield Token(id, shown, logprob, raw, "stop")
            return
        if last:
            yield Token(id, shown + stop.finish(), logprob, raw, "end" if ended else "length")
            return
        yield Token(id, shown, logprob, raw)
        new = [id]


@torch.inference_mode()
def read(model: Model, memory: Memory, ids: Sequence[int]) -> Tensor:
    """Append `ids` to the memory of one sequence, CHUNK at a time -> (V,) float32 logits after the last."""
    device = next(model.parameters()).device
    hidden = None
    for start in range(0, len(ids), CHUNK):
        part = torch.tensor(ids[start : start + CHUNK], device=device)
        ctx = memory.step([len(part)], device)
        hidden = model(part, ctx)
        ctx.close()
    assert hidden is not None
    return model.head(hidden[-1:])[0].float()


@torch.inference_mode()
def _choose(
    logits: Tensor,
    history: History,
    sampling: Sampling,
    banned: Sequence[int] | frozenset[int],
    seed: int,
    position: int,
    choice: int,
) -> tuple[int, float, float]:
    """Take one id -> (id, its log-probability where it was drawn, its log-probability for the model)."""
    total = logits.logsumexp(0)
    if not torch.isfinite(total):
        raise TerakoyaError("model", "gives logits that are no numbers", hint="its weights are damaged or overflow")
    if sampling.temperature == 0:
        id, logprob = int(penalise(logits, history, sampling, banned).argmax()), 0.0
    else:
        logprobs = process(logits, history, sampling, banned=banned)
        id = draw(logprobs, seed, position, choice)
        logprob = float(logprobs[id])
    return id, logprob, float(logits[id] - total)


def check(model: Model, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling) -> None:
    """Refuse a model that does not continue texts, and what `allowed` refuses."""
    continues(model.spec)
    allowed(model, tokenizer, prompt, sampling)


def allowed(model: Model, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling) -> None:
    """Refuse a prompt that is empty, has foreign ids or leaves no room in the context."""
    vocab, context = min(model.spec.vocab, tokenizer.vocab_size), model.spec.context
    if not prompt:
        raise TerakoyaError("prompt", "is empty", hint="a model needs at least one token to go on from, such as bos")
    for id in prompt:
        if not 0 <= id < model.spec.vocab:
            raise TerakoyaError("prompt", "is no id of this model", given=id, allowed=f"0 to {model.spec.vocab - 1}")
    for id, _ in sampling.logit_bias:
        if id >= vocab:
            raise TerakoyaError("sampling.logit_bias", "is no id of this model", given=id, allowed=f"0 to {vocab - 1}")
    if len(prompt) >= context:
        raise TerakoyaError(
            "prompt",
            f"has {len(prompt)} tokens; the model's context, prompt and answer together, is {context}",
            hint="shorten the prompt",
        )


def _seed(sampling: Sampling) -> int:
    return secrets.randbits(63) if sampling.seed is None else sampling.seed
