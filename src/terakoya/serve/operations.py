"""Routes for those who run the server: is it well, how much does it do, and how does it cut a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from terakoya.serve import asking
from terakoya.serve.fields import DetokenizeRequest, TemplateRequest, TokenizeRequest
from terakoya.serve.house import House
from terakoya.serve.metrics import Labels
from terakoya.serve.openai import answer
from terakoya.serve.problem import Problem
from terakoya.serve.schema import TEXT
from terakoya.serve.shelf import Served
from terakoya.serve.tokens import spelt


def routes(house: House) -> APIRouter:
    """Build the routes."""
    router = APIRouter(tags=["Operations"])

    @router.get("/health")
    async def health() -> Response:
        """Say whether the process is well; 503 where an engine has died. Needs no key."""
        if any(s.writes is not None and s.writes._closed is not None for s in house.shelf.open.values()):
            raise Problem(503, "an engine has stopped")
        return answer({"status": "ok"})

    @router.get("/ready")
    async def ready() -> Response:
        """Say whether requests are answered now; 503 while the first model is opened, and while closing."""
        if house.closing or not house.ready:
            raise Problem(503, "closing" if house.closing else "the first model is being opened", retry=1)
        return answer({"status": "ready"})

    @router.get("/metrics", responses=TEXT, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Give numbers to Prometheus."""
        return Response(house.metrics.text(_gauges(house)), media_type="text/plain; version=0.0.4")

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        """Cut a text, or a conversation, into tokens."""
        return answer(await house.quickly(body.model, lambda served: _tokens(served, body)))

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        """Join tokens to a text."""
        return answer(await house.quickly(body.model, lambda s: {"prompt": s.tokenizer.decode(body.tokens)}))

    @router.post("/apply-template")
    async def apply_template(body: TemplateRequest) -> Response:
        """Write a conversation as the model reads it; control tokens are shown by name."""

        def work(served: Served) -> dict[str, Any]:
            ids = asking.conversation(served, body.messages, body.chat_template)
            return {"prompt": served.tokenizer.decode(ids, specials=True)}

        return answer(await house.quickly(body.model, work))

    return router


def _tokens(served: Served, body: TokenizeRequest) -> dict[str, Any]:
    if body.messages is not None:
        ids = asking.conversation(served, body.messages)
    else:
        ids = asking.text_ids(served.tokenizer, body.prompt or "", body.add_special_tokens)
    found: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": served.context}
    if body.with_pieces:
        found["pieces"] = [_piece(spelt(served.tokenizer, id)) for id in ids]
    return found


def _piece(raw: bytes) -> str | list[int]:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return list(raw)


def _gauges(house: House) -> Iterable[tuple[str, str, Labels, float]]:
    for name, served in house.shelf.open.items():
        labels: Labels = (("model", name),)
        if served.writes is None:
            continue
        scheduler, counts, store = served.writes.scheduler, served.writes.counts, served.writes.store
        yield "running", "choices being computed", labels, len(scheduler.running)
        yield "waiting", "choices that wait", labels, len(scheduler.waiting)
        yield "capacity_tokens", "tokens that there is memory for", labels, store.capacity
        yield "preemptions_total", "choices that gave their memory to older ones", labels, scheduler.preemptions
        yield "steps_total", "steps of the engine", labels, counts.steps
        yield "computed_tokens_total", "tokens through the model", labels, counts.computed
        yield "drafted_tokens_total", "tokens guessed ahead", labels, counts.proposed
        yield "accepted_tokens_total", "guesses that were right", labels, counts.accepted
        yield "failures_total", "choices that broke off", labels, counts.failures
