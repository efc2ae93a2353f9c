"""Small trained tokenizers and the real SmolLM2 one, made once."""

from __future__ import annotations

from typing import Any

import pytest

from terakoya.tokenizer import KINDS, Tokenizer, from_gguf, train
from tests.tokenizer.smollm import smollm_metadata
from tests.tokenizer.texts import CORPUS


@pytest.fixture(scope="session")
def trained() -> dict[str, Tokenizer]:
    """One small tokenizer of each kind."""
    return {kind: train(iter(CORPUS * 20), kind, 700) for kind in KINDS}


@pytest.fixture(scope="session", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, trained: dict[str, Tokenizer]) -> Tokenizer:
    """Each kind in turn."""
    return trained[request.param]


@pytest.fixture(scope="session")
def metadata() -> dict[str, Any]:
    """The GGUF metadata of SmolLM2-135M-Instruct."""
    return smollm_metadata()


@pytest.fixture(scope="session")
def smollm(metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer of SmolLM2-135M-Instruct."""
    return from_gguf(metadata)
