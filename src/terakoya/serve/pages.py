"""The page's files, as they lie in the package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class File:
    """One file and what browsers need to know of it."""

    data: bytes
    kind: str
    tag: str


def files() -> dict[str, File]:
    """Read all files: path on the server -> file. `/` is the page, `/docs` lists the routes."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in KINDS:
            data = path.read_bytes()
            file = File(data, KINDS[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:16]}"')
            found[{"index.html": "/", "docs.html": "/docs"}.get(path.name, f"/page/{path.name}")] = file
    found["/favicon.ico"] = found["/page/icon.svg"]  # what browsers ask for before they have read the page
    return found


def routes(known: dict[str, File]) -> APIRouter:
    """Build a route for each file; nothing is looked up by what a client says."""
    router = APIRouter(include_in_schema=False)
    for path, file in known.items():
        router.add_api_route(path, _sender(file), methods=["GET", "HEAD"])
    return router


def _sender(file: File):
    async def send(http: Request) -> Response:
        headers = {"etag": file.tag, "cache-control": "no-cache"}
        if http.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.data, media_type=file.kind, headers=headers)

    return send
