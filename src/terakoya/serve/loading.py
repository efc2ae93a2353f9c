"""Adapters while the server runs: taken in and let go by name, from one folder that the owner has named."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from terakoya.errors import TerakoyaError
from terakoya.serve.fields import Strict
from terakoya.serve.house import House
from terakoya.serve.openai import answer
from terakoya.serve.problem import Problem
from terakoya.serve.shelf import Adapter

NAME = r"^[A-Za-z0-9._-]{1,100}$"


class LoadRequest(Strict):
    """POST /v1/load_lora_adapter"""

    lora_name: str = Field(pattern=NAME, description="the model name that clients will ask for")
    lora_path: str = Field(min_length=1, max_length=500, description="a folder inside the one of --adapters")
    base_model_name: str | None = Field(None, max_length=200, description="the first model where it is missing")
    load_inplace: bool | None = Field(None, description="true: replace an adapter of this name")


class UnloadRequest(Strict):
    """POST /v1/unload_lora_adapter"""

    lora_name: str = Field(max_length=100)


def routes(house: House) -> APIRouter:
    """Build the routes; without `--adapters` they are closed."""
    router = APIRouter(tags=["Operations"])

    @router.post("/v1/load_lora_adapter")
    async def load(body: LoadRequest) -> Response:
        """Open an adapter, so that its name is a model's; what is wrong with its files is found now."""
        root = _root(house)
        base = house.shelf.known(body.base_model_name)
        if base in house.shelf.adapters:
            raise Problem(400, f"base_model_name: {base!r} is an adapter itself", param="base_model_name")
        adapter = Adapter(base, await asyncio.to_thread(inside, root, body.lora_path))
        if body.lora_name in house.shelf.adapters and body.load_inplace:
            await house.shelf.drop(body.lora_name)
        house.shelf.add(body.lora_name, adapter)
        try:
            (await house.shelf.lease(body.lora_name)).close()
        except BaseException as error:
            await house.shelf.drop(body.lora_name)
            cause = error.__cause__
            if isinstance(cause, TerakoyaError):  # of the files, without where they lie
                raise Problem(400, f"lora_path: {_bare(str(cause), root)}", param="lora_path") from None
            raise
        return answer({"object": "model", "id": body.lora_name, "parent": base, "loaded": True})

    @router.post("/v1/unload_lora_adapter")
    async def unload(body: UnloadRequest) -> Response:
        """Close an adapter and forget its name."""
        _root(house)
        if body.lora_name not in house.shelf.adapters:
            raise Problem(404, f"there is no adapter {body.lora_name!r} here", param="lora_name")
        await house.shelf.drop(body.lora_name)
        return answer({"object": "model", "id": body.lora_name, "loaded": False})

    return router


def _root(house: House) -> Path:
    root = house.settings.adapters
    if root is None:
        raise Problem(403, "adapters are not loaded over the network here; start with --adapters FOLDER and a key")
    return root


def inside(root: Path, given: str) -> Path:
    """Return a folder below `root`; Problem 400 for anything that leads out of it, links too."""
    if "\0" in given or "\\" in given or Path(given).is_absolute() or ".." in Path(given).parts:
        raise Problem(400, "lora_path: must be the name of a folder inside that of --adapters", param="lora_path")
    root = root.resolve()
    path = (root / given).resolve()
    if not path.is_relative_to(root) or path == root or not path.is_dir():
        raise Problem(400, "lora_path: is no folder inside that of --adapters", param="lora_path")
    return path


def _bare(text: str, root: Path) -> str:
    return text.replace(f"{root.resolve()}/", "").replace(f"{root}/", "")
