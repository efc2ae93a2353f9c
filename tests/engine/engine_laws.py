"""What every answer of the engine must satisfy, whatever happened on the way to it."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar

import torch

from terakoya.engine.engine import Engine
from terakoya.engine.request import Completion, Request
from terakoya.engine.sampling import Sampling
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.zoo.convert import Loaded
from tests.engine.engine_fakes import byte_tokenizer

TOLERANCE = 1e-4  # relative to the scale of the logits, fp32
BY: ContextVar[str] = ContextVar("by", default="auto")  # who computes, where a test does not say


def engine_of(model: Model, **more) -> Engine:
    """An engine that nobody steps but the test, with poisoned memory and pages counted after every change."""
    settings = {"memory_bytes": 4 << 20, "threaded": False, "poison": True, "max_tokens_per_step": 32} | more
    settings = {"by": BY.get()} | settings
    return Engine(Loaded(model, byte_tokenizer(), "test"), **settings)


def asked(prompt: Sequence[int], tokens: int = 8, **more) -> Request:
    how = {"temperature": 0, "max_tokens": tokens} | more.pop("how", {})
    return Request(tuple(prompt), Sampling(**how), logprobs=0, ignore_end=True, **more)


@torch.no_grad()
def furthest(model: Model, prompt: Sequence[int], done: Completion) -> float:
    """How far the answer's log-probabilities lie from those of one forward pass over prompt and answer, alone."""
    ids = [*prompt, *done.ids]
    logits = model.head(model(torch.tensor(ids), Packed([len(ids)])))[len(prompt) - 1 : -1, :259].float()
    scale = max(1.0, float(logits.abs().max()))
    wanted = logits.log_softmax(-1)[torch.arange(len(done.ids)), torch.tensor(done.ids)]
    got = torch.tensor([p.logprob for p in done.logprobs])
    assert len(got) == len(done.ids)
    return float((wanted - got).abs().max()) / scale


def empty(engine: Engine) -> None:
    """Nothing is held once everything has ended."""
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting
    for part in engine.store._parts():
        free, cached, live = part.pool.counts()
        assert (free + cached, live) == (part.pool.total, 0)
        assert not part.pool.owner.any()
