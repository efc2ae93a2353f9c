"""terakoya convert: a model as other programs open it."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from terakoya.cli import show as screen
from terakoya.cli.folder import new_folder
from terakoya.errors import TerakoyaError
from terakoya.models import open_model
from terakoya.zoo import convert as files
from terakoya.zoo import lineage
from terakoya.zoo.config_json import in_their_words
from terakoya.zoo.convert import Loaded


def convert(args: argparse.Namespace) -> None:
    """Write a model as a Hugging Face folder or as a GGUF file, packed weights as numbers first."""
    if args.to == "gguf":
        _to_gguf(args)
        return
    with new_folder(args.out) as folder:
        loaded = files.plain(networked(open_model(args.model), args.model))
        files.save(loaded, folder, dtype=getattr(torch, args.dtype))
    count = sum(p.numel() for p in loaded.model.parameters())
    opens = "" if loaded.config or in_their_words(loaded.spec, loaded.family) else ", which terakoya alone can open"
    screen.console.print(f"{loaded.family}: {count:,} parameters in {args.out}{opens}", markup=False)


def networked(loaded: Loaded, name: str) -> Loaded:
    """Return a model of the zoo; an error for those that have a form of their own: n-grams, ELMo, AWD-LSTM."""
    if loaded.family not in lineage.families():
        problem = f"is a model of the kind {loaded.family!r}, whose form other programs do not know"
        raise TerakoyaError(name, problem, hint="its folder can be copied as it is")
    return loaded


def _to_gguf(args: argparse.Namespace) -> None:
    from terakoya.zoo.gguf_model import save_gguf

    out = Path(args.out)
    if out.exists():
        raise TerakoyaError(str(out), "exists already", hint="choose a new file")
    if not out.parent.is_dir():
        raise TerakoyaError(str(out.parent), "is no folder")
    kinds = save_gguf(networked(open_model(args.model), args.model), out, args.type)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    screen.console.print(f"{out.stat().st_size / 1e6:,.1f} MB in {out}: {told} tensors", markup=False)
