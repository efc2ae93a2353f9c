"""--image of terakoya generate and chat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terakoya.engine.generate import generate
from terakoya.engine.sampling import Sampling
from terakoya.engine.seeing import Seeing, begun, mark_of, prompt
from terakoya.engine.vectors import pictured
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.zoo.picture import opened, preparation, prepared


def continuation(
    model: Any, tokenizer: Tokenizer, text: str, files: list[str], folder: str, how: Sampling
) -> Iterator[str]:
    """Yield the continuation of a text with pictures as it comes."""
    mark = mark_of(_plain(model), tokenizer)
    ids, vectors = pictured(model, prompt(tokenizer, text, mark, len(files)), pixels(model, files, folder))
    memory = begun(model, ids, vectors)
    yield from (token.text for token in generate(model, tokenizer, ids, how, memory=memory))


def chat(model: Any, tokenizer: Tokenizer, files: list[str], folder: str, system: str | None) -> Seeing:
    """Begin a conversation about pictures."""
    mark_of(_plain(model), tokenizer)
    return Seeing(model, tokenizer, pixels(model, files, folder), system=system)


def pixels(model: Model, files: list[str], folder: str) -> Tensor:
    """Open and prepare pictures: -> (N, 3, size, size)."""
    assert model.spec.sight is not None
    how = preparation(Path(folder), model.spec.sight.image)
    first = next(model.parameters())
    found = [torch.from_numpy(prepared(opened(Path(file)), how)) for file in files]
    return torch.stack(found).to(first.device, first.dtype)


def _plain(model: Any) -> Model:
    if not isinstance(model, Model):
        raise TerakoyaError("--image", "pictures are read by PyTorch only", hint="leave --by and --weights out")
    return model
