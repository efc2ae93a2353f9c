"""Keys and values in eight bits: near what they were, the same however a prompt is cut, and half the memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.engine.compact import Kept, Rounded, decode, encode
from terakoya.engine.engine import Engine
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.zoo.convert import Loaded
from tests.engine.engine_laws import asked, engine_of
from tests.quant.small import logits
from tests.quant.small import small as uneven

FAMILIES = ("llama2", "mistral", "bloom", "gemma2", "mpt")
KINDS: tuple[Kept, ...] = ("int8", "fp8")
PROMPT = [(7 * i) % 250 for i in range(45)]


@settings(max_examples=50, deadline=None)
@given(st.integers(-10, 8), st.integers(0, 2**31))
def test_numbers_stay_within_half_a_step(size: int, seed: int) -> None:
    x = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(seed)) * 2.0**size
    x[0, 0] = 0
    most = x.abs().amax(-1, keepdim=True)
    back = decode(*encode(x, torch.int8), torch.float32)
    # half a step, the rounding of the scale to half precision (2⁻¹¹ of it, or half its smallest step), 127 times
    assert ((back - x).abs() <= most / 254 + most * 2.0**-10 + 127 * 2.0**-24).all()
    back = decode(*encode(x, torch.uint8), torch.float32)
    assert ((back - x).abs() <= x.abs() / 16 + most * 2.0**-9 + 448 * 2.0**-24).all()
    assert not back[0, 0].any()


@pytest.mark.parametrize("kept", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_rounded_keys_and_values(family: str, kept: Kept) -> None:
    """Prompts in chunks, in company and from the prefix cache, with what is empty poisoned: as if read at once."""
    model = uneven(family)
    with engine_of(model, kept=kept, by="torch", max_tokens_per_step=16) as engine:
        runs = [asked(PROMPT, 10), asked(PROMPT[:20], 10), asked(PROMPT, 10)]
        answers = [choices[0] for choices in engine.generate(runs)]
        again = engine.generate([asked(PROMPT, 10)])[0][0]
        assert again.usage.cached
    assert answers[0].ids == answers[2].ids == again.ids
    for prompt, done in zip((PROMPT, PROMPT[:20]), answers, strict=False):
        ids = torch.tensor([*prompt, *done.ids])
        with torch.inference_mode():
            ctx = Rounded([len(ids)], kept=kept)
            best = model.head(model(ids, ctx))[len(prompt) - 1 : -1]
        taken = best[range(len(done.ids)), list(done.ids)]
        assert (best.amax(-1) - taken).max() <= 1e-4 * best.abs().max()


@pytest.mark.parametrize(("kept", "bound"), [("int8", 0.05), ("fp8", 0.3)])
def test_the_model_says_nearly_the_same_in_half_the_memory(kept: Kept, bound: float) -> None:
    model = uneven(depth=3)
    ids = torch.tensor(PROMPT)
    with torch.inference_mode():
        before = model.head(model(ids, Packed([len(ids)])))
        after = model.head(model(ids, Rounded([len(ids)], kept=kept)))
    far = ((after - before).norm() / before.norm()).item()
    assert 0 < far < bound
    assert torch.equal(before, logits(model, ids))
    loaded, tokens = Loaded(model, None, "smollm2"), {}
    for how in ("full", kept):
        with Engine(loaded, by="torch", kept=how, memory_bytes=1 << 20, threaded=False) as engine:
            tokens[how] = engine.store.capacity
            assert how == "full" or "int8" in engine.describe() or "uint8" in engine.describe()
    assert tokens[kept] > 2.6 * tokens["full"]  # float32 to 8 bits and a scale for every 8 of them


def test_what_cannot_be_is_said() -> None:
    loaded = Loaded(uneven(), None, "smollm2")
    with pytest.raises(TerakoyaError, match=r"int4.*full"):
        Engine(loaded, by="torch", kept="int4")  # type: ignore[arg-type]
    with pytest.raises(TerakoyaError, match="remembered by PyTorch only"):
        Engine(loaded, by="native", kept="int8")
