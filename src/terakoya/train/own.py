"""Models kept under their own names, as others meet them: ELMo, of which a task mixes the layers, and AWD-LSTM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from terakoya.model.awd import AwdLstm
from terakoya.model.elmo import ElmoVectors
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train import awd, elmo

OPENERS: dict[str, Callable[[Path], tuple[Model, Tokenizer]]] = {
    elmo.MODEL_TYPE: elmo.open_elmo,
    awd.MODEL_TYPE: awd.open_awd,
}


def said(model: Model) -> dict[str, Any] | None:
    """Return what such a model's config.json says; None for a model of `zoo`."""
    match model:
        case ElmoVectors():
            return elmo.said(model.elmo)
        case AwdLstm():
            return awd.said(model)
        case _:
            return None
