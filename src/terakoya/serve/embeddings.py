"""/v1/embeddings, and what Ollama's route shares with it: texts to vectors of length one."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import Any, Literal

import torch
from fastapi import APIRouter
from pydantic import Field, field_validator
from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor

from terakoya.engine.embed import Pooling, batches, check, embed, shortened
from terakoya.engine.request import EngineError
from terakoya.ngram.model import NGram
from terakoya.serve.asking import text_ids
from terakoya.serve.fields import Id, Strict
from terakoya.serve.house import House
from terakoya.serve.job import unless_gone
from terakoya.serve.live import packed
from terakoya.serve.problem import Problem, problem_of
from terakoya.serve.shelf import Served

MOST_TEXTS = 2048  # as at OpenAI
Texts = str | list[str] | list[Id] | list[list[Id]]


class EmbeddingRequest(Strict):
    """POST /v1/embeddings"""

    model: str | None = Field(None, max_length=200)
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, description="the first so many numbers, again of length one")
    pooling: Literal["mean", "last"] | None = Field(
        None, description="of a decoder's vectors; default mean. Encoders have their own"
    )
    user: str | None = Field(None, max_length=512, description="changes nothing: nothing is kept")

    @field_validator("input")
    @classmethod
    def _some(cls, given: Texts) -> Texts:
        return some(given)


def some(given: Any) -> Any:
    """Raise ValueError for no texts, or too many."""
    if isinstance(given, list) and not given:
        raise ValueError("an empty list has nothing to read")
    if isinstance(given, list) and not isinstance(given[0], int) and len(given) > MOST_TEXTS:
        raise ValueError(f"at most {MOST_TEXTS} texts")
    return given


@dataclass(frozen=True)
class Vectors:
    """The vectors of texts, (N, D), and how many tokens were read."""

    rows: Tensor
    tokens: int


def routes(house: House) -> APIRouter:
    """Build the route."""
    router = APIRouter(tags=["OpenAI"])

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, http: Request) -> Response:
        """Turn texts into vectors of length one, by pooling what the model makes of their tokens."""
        name = house.shelf.known(body.model)
        work = vectors(house, name, body.input, body.pooling, body.dimensions)
        found = await unless_gone(work, http.receive)
        data = await asyncio.to_thread(_written, name, found, body.encoding_format == "base64")
        return Response(data, media_type="application/json")

    return router


def _written(name: str, found: Vectors, coded: bool) -> bytes:
    """Write the answer; in a thread, because two thousand vectors are megabytes."""
    data = [
        {"object": "embedding", "index": i, "embedding": _base64(row) if coded else row.tolist()}
        for i, row in enumerate(found.rows)
    ]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    return packed({"object": "list", "data": data, "model": name, "usage": usage})


def _base64(row: Tensor) -> str:
    return base64.b64encode(row.numpy().astype("<f4").tobytes()).decode()


async def vectors(
    house: House, name: str, given: Texts, how: Pooling | None, dimensions: int | None, *, cut: bool = False
) -> Vectors:
    """Read texts with a model, step by step, so that a client that leaves stops it; `cut`: long ones lose their end."""
    house.admit()
    lease = await house.shelf.lease(name)
    served = lease.served
    try:
        if served.encoder and how is not None:
            raise Problem(400, "pooling: this model has its own", param="pooling")
        if not served.encoder and (served.loaded.spec.sort != "decoder" or isinstance(served.loaded.model, NGram)):
            raise Problem(400, f"{name} has no vectors for texts", param="model", code="model_not_supported")
        texts = await asyncio.to_thread(_ids, served, given, house.limits.waiting_tokens, cut)
        rows: list[Tensor | None] = [None] * len(texts)
        for batch in batches([len(ids) for ids in texts], served.deterministic):
            async with served.reading:
                found = await asyncio.to_thread(_read, served, [texts[i] for i in batch], how or "mean")
            for i, row in zip(batch, found, strict=True):
                rows[i] = row
        whole = torch.stack([row for row in rows if row is not None]).cpu()
        tokens = sum(map(len, texts))
        house.metrics.prompt_tokens += tokens
        return Vectors(whole if served.encoder and dimensions is None else shortened(whole, dimensions), tokens)
    except EngineError as error:
        raise problem_of(error) from None
    finally:
        lease.close()


def _read(served: Served, texts: list[list[int]], how: Pooling) -> Tensor:
    return served.encoder.embed(texts) if served.encoder else embed(served.loaded.model, texts, how)


def _ids(served: Served, given: Texts, most: int, cut: bool) -> list[list[int]]:
    """Return every text in ids, after the begin token, and no more than can be read."""
    texts: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
    if served.encoder:
        found = served.encoder.ids(texts, cut=cut)
    else:
        found = [text_ids(served.tokenizer, text, None) if isinstance(text, str) else text for text in texts]
        found = [ids[: served.context] for ids in found] if cut else found
        check(served.loaded.model, found, served.context, served.engine.vocab)
    if sum(map(len, found)) > most:
        raise Problem(400, f"input: has more than {most:,} tokens in all", param="input", code="too_large")
    return found
