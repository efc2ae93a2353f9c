"""terakoya serve: models over HTTP."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from terakoya.device import choose, compute_dtype
from terakoya.errors import MissingExtra, TerakoyaError
from terakoya.models import find, open_model

if TYPE_CHECKING:
    from terakoya.serve.encoder import Encoder
    from terakoya.zoo.convert import Loaded


def serve(args: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    for library in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(library) is None:
            raise MissingExtra(library, "serve")
    from terakoya.serve.server import server
    from terakoya.serve.settings import Limits, Settings
    from terakoya.serve.shelf import Shelf, worn

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("terakoya").setLevel(logging.INFO)
    settings = Settings(
        host=args.host,
        port=args.port,
        keys=keys(args.api_key_file),
        hosts=tuple(name.lower() for name in args.allow_host),
        origins=tuple(args.allow_origin),
        insecure=args.insecure,
        grace=_positive("--grace", args.grace),
        adapters=_folder(args.adapters),
        limits=Limits(
            waiting=int(_positive("--queue", args.queue)),
            answer=int(_positive("--max-tokens", args.max_tokens)),
            seconds=_positive("--answer-time", args.answer_time),
        ),
    )
    if args.weights and (args.by == "torch" or args.device != "cpu"):
        raise TerakoyaError(
            "--weights", "are made smaller for the native program only", given=args.weights,
            allowed="with --device cpu, without --by torch",
        )  # fmt: skip
    if args.precision != "auto" and args.device == "cpu":
        raise TerakoyaError(
            "--precision", "is for a GPU", given=args.precision,
            hint="on a CPU weights are as the file has them: --weights",
        )  # fmt: skip
    openers = models(args)
    shelf = Shelf(
        openers,
        settings.limits,
        adapters=worn(args.adapter, list(openers)),
        most=args.keep,
        idle=args.idle * 60,
        deterministic=args.deterministic,
        weights=args.weights,
        by=args.by,
        drafts=drafts(args, list(openers)),
    )
    made = server(shelf, settings)
    made.announce = lambda: logging.getLogger("terakoya.serve").info(
        "%s · page at / · OpenAI at /v1 · Ollama at /api · schema at /docs", made.address
    )
    made.run()
    if not made.started:
        raise TerakoyaError("--port", "cannot be listened on", given=f"{args.host}:{args.port}")


def models(args: argparse.Namespace) -> dict[str, Callable[[], Loaded | Encoder]]:
    """Read which models are served, and find them; positions are scaled where --rope says so."""
    from terakoya.engine.stretch import parsed
    from terakoya.serve.shelf import named

    openers = named(args.models, partial(opened, device=args.device, precision=args.precision))
    for model in args.models:
        find(model.partition("=")[2] or model)
    for name, how in aimed("--rope", args.rope, list(openers)).items():
        parsed(how, 1)
        openers[name] = partial(longer, openers[name], how)
    return openers


def drafts(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Callable[[], Loaded]]:
    """Read which smaller models guess ahead for whom, and find them."""
    found = aimed("--draft", args.draft, names)
    if found and args.deterministic:
        raise TerakoyaError("--draft", "is not used where every bit matters", hint="leave out --deterministic")
    for draft in found.values():
        find(draft)
    return {name: partial(_numbers, draft, args.device, args.precision) for name, draft in found.items()}


def aimed(option: str, given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Read `WHAT` or `WHAT@MODEL` -> what is meant for which model; without a name, for the first."""
    found: dict[str, str] = {}
    for one in given:
        what, at, name = one.rpartition("@") if not Path(one).exists() else (one, "", "")
        what, name = (what, name) if at else (one, names[0])
        if name not in names:
            raise TerakoyaError(option, "is for a model that is not served", given=name, allowed=names)
        if name in found:
            raise TerakoyaError(option, "stands there twice for one model", given=one)
        found[name] = what
    return found


def longer(open_: Callable[[], Loaded | Encoder], how: str) -> Loaded | Encoder:
    """Open a model with its rotary positions scaled."""
    from terakoya.engine.stretch import stretched
    from terakoya.serve.encoder import Encoder

    found = open_()
    if isinstance(found, Encoder):
        return replace(found, loaded=stretched(found.loaded, how))
    return stretched(found, how)


def _numbers(name: str, device: str, precision: str) -> Loaded:
    """Open a model where it will be computed: on a GPU in bfloat16, unless asked otherwise."""
    place = choose(device, precision)
    loaded = open_model(name, device=place.name)
    for p in loaded.model.parameters() if place.precision == "bf16" else ():
        p.data = p.data.to(compute_dtype(place))  # not the buffers: scales of packed weights stay as they are
    return loaded


def opened(name: str, device: str = "cpu", precision: str = "auto") -> Loaded | Encoder:
    """Open a model that writes, or one that reads: then with the pooling that its folder says."""
    from terakoya import understand
    from terakoya.serve.encoder import Encoder

    loaded = _numbers(name, device, precision)
    if loaded.spec.sort != "encoder":
        return loaded
    found = understand.reading(loaded, find(name))
    return Encoder(loaded, found.pool, found.normalise)


def _folder(given: str | None) -> Path | None:
    if given is None or Path(given).is_dir():
        return None if given is None else Path(given)
    raise TerakoyaError("--adapters", "is no folder", given=given)


def keys(path: str | None) -> tuple[str, ...]:
    """Read a file of API keys, one a line; `#` begins a remark. Others must not be able to read it."""
    if path is None:
        return ()
    file = Path(path)
    if os.name == "posix" and file.stat().st_mode & 0o077:
        raise TerakoyaError(path, "can be read by others", hint=f"chmod 600 {path}")
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found:
        raise TerakoyaError(path, "holds no key", allowed="one key a line")
    return found


def _positive(name: str, value: float) -> float:
    if not 0 < value < 1e9:
        raise TerakoyaError(name, given=value, allowed="more than 0")
    return value
