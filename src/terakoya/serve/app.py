"""The application: routes, errors in one shape, and the guard round it all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from terakoya import __version__
from terakoya.errors import TerakoyaError
from terakoya.serve import embeddings, loading, ollama, openai, operations, pages, responses
from terakoya.serve.guard import Guard
from terakoya.serve.house import House
from terakoya.serve.problem import Problem, invalid, problem_of
from terakoya.serve.schema import App

log = logging.getLogger("terakoya.serve")


def application(house: House) -> Guard:
    """Build the whole as one ASGI application."""
    app = App(
        title="Terakoya",
        version=__version__,
        description="Language models as OpenAI and Ollama speak. Every field is applied or refused by name.",
        docs_url=None,
        redoc_url=None,
        lifespan=lambda _: _life(house),
    )
    for module in (openai, embeddings, responses, ollama, operations, loading):
        app.include_router(module.routes(house))
    known = pages.files()
    app.include_router(pages.routes(known))
    _errors(app)
    return Guard(app, house.settings, house.metrics, known)


@contextlib.asynccontextmanager
async def _life(house: House) -> AsyncIterator[None]:
    opening = asyncio.create_task(_open_first(house))
    house.shelf.start()
    try:
        yield
    finally:
        opening.cancel()
        await house.shelf.close()


async def _open_first(house: House) -> None:
    try:
        lease = await house.shelf.lease(None)
    except Problem as problem:
        log.error("%s", problem.message)
        return
    lease.close()
    house.ready = True


def _errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> Response:
        return _said(request, problem)

    @app.exception_handler(TerakoyaError)
    async def _mistake(request: Request, error: TerakoyaError) -> Response:
        return _said(request, problem_of(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return _said(request, invalid(error.errors()))

    @app.exception_handler(ValidationError)
    async def _converted(request: Request, error: ValidationError) -> Response:
        return _said(request, invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        what = "there is no such route" if error.status_code == 404 else str(error.detail).lower()
        problem = Problem(error.status_code, f"{request.method} {request.url.path[:200]}: {what}")
        return _said(request, problem, dict(error.headers or {}))


def _said(request: Request, problem: Problem, headers: dict[str, str] | None = None) -> Response:
    body = {"error": problem.message} if request.url.path.startswith("/api/") else problem.body()
    return JSONResponse(body, problem.status, {**(headers or {}), **problem.headers})
