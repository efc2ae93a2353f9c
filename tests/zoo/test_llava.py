"""LLaVA against transformers: what it sees, what it says of it, cached, packed, and its files."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from terakoya.errors import TerakoyaError
from terakoya.model.context import Memory, Packed
from terakoya.model.sight import placed, prepared, widened
from terakoya.zoo import convert
from tests.zoo.paired import IMAGE, SEEING, TOLERANCE
from tests.zoo.reference import LLAMA, MHA

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers", reason="needs terakoya[reference]")


@functools.cache
def pair(name: str) -> tuple[Any, convert.Loaded, Path]:
    torch.manual_seed(3)
    text = LLAMA | MHA | {"model_type": "llama", "vocab_size": 99, "pad_token_id": 2, "eos_token_id": 1}
    made = transformers.LlavaConfig(text_config=text, **SEEING[name])
    made._attn_implementation = "eager"
    theirs = transformers.LlavaForConditionalGeneration(made).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * 0.08 if p.dim() > 1 else p + 0.2 * torch.randn_like(p))
    folder = Path(tempfile.mkdtemp()) / name
    theirs.save_pretrained(folder)
    return theirs, convert.load(folder), folder


def prompt(ours: convert.Loaded) -> torch.Tensor:
    assert ours.spec.sight
    return torch.tensor(widened([5, 6, IMAGE, 7, 8, 9, IMAGE, 10], ours.spec.sight))


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SEEING)
def test_logits(name: str) -> None:
    theirs, ours, _ = pair(name)
    x, sight = prompt(ours), ours.spec.sight
    assert sight
    with torch.no_grad():
        want = theirs(input_ids=x[None], pixel_values=pixels()).logits[0]
        seen = ours.model.see(pixels())
        assert seen.shape == (2, sight.places, 48)
        got = ours.model.head(ours.model(x, Packed([len(x)], vectors=placed(x, seen, sight))))
    assert (got - want).abs().max() <= TOLERANCE * max(1.0, want.std().item())


def test_greedy_answers_after_two_pictures() -> None:
    theirs, ours, _ = pair("default")
    x, sight = prompt(ours), ours.spec.sight
    assert sight
    with torch.no_grad():
        want = theirs.generate(
            input_ids=x[None], pixel_values=pixels(), attention_mask=torch.ones_like(x[None]), max_new_tokens=6,
            do_sample=False, eos_token_id=None,
        )[0, len(x) :]  # fmt: skip
        memory, said = Memory(), []
        ctx = memory.step([len(x)], vectors=placed(x, ours.model.see(pixels()), sight))
        logits = ours.model.head(ours.model(x, ctx)[-1:])
        for _ in range(6):
            ctx.close()
            said.append(int(logits.argmax()))
            ctx = memory.step([1])
            logits = ours.model.head(ours.model(torch.tensor(said[-1:]), ctx))
    assert said == want.tolist()


@pytest.mark.parametrize("name", SEEING)
def test_files_both_ways(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    theirs, ours, folder = pair(name)
    want, got = load_file(folder / "model.safetensors"), convert.tensors(ours.model, ours.family)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in want)
    convert.save(convert.Loaded(ours.model, None, ours.family), tmp_path)
    assert convert.load(tmp_path).spec == ours.spec
    opened = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    x = prompt(ours)
    with torch.no_grad():
        before = theirs(input_ids=x[None], pixel_values=pixels()).logits
        assert torch.allclose(opened(input_ids=x[None], pixel_values=pixels()).logits, before, atol=1e-6)


def test_pictures_are_prepared_as_clip_has_it() -> None:
    """The same picture as transformers' processor makes of it, but for rounding in the resizing."""
    _, ours, _ = pair("default")
    sight = ours.spec.sight
    assert sight
    image = torch.randint(0, 256, (20, 30, 3), generator=torch.Generator().manual_seed(2))
    got = prepared(image, sight)
    assert got.shape == (3, 12, 12)
    high = prepared(torch.full((20, 30, 3), 255), sight)
    assert torch.allclose(high[:, 0, 0], torch.tensor([1.9303, 2.0749, 2.1459]), atol=1e-3)


def test_a_wrong_number_of_places_is_an_error() -> None:
    _, ours, _ = pair("default")
    sight = ours.spec.sight
    assert sight
    with pytest.raises(TerakoyaError, match="places for pictures"):
        placed(prompt(ours)[:-3], ours.model.see(pixels())[:1], sight)
    with pytest.raises(TerakoyaError, match="image"):
        ours.model.see(torch.zeros(1, 3, 8, 8))


def test_a_loss_on_the_words_teaches_the_eye() -> None:
    _, ours, _ = pair("default")
    x, sight = prompt(ours), ours.spec.sight
    assert sight
    ours.model.zero_grad()
    ctx = Packed([len(x)], vectors=placed(x, ours.model.see(pixels()), sight))
    torch.nn.functional.cross_entropy(ours.model.head(ours.model(x, ctx))[:-1], x[1:]).backward()
    kept = ("sight.layers.2.", "sight.after.")  # of the last layer and the last norm LLaVA only keeps the weights
    for name, p in ours.model.named_parameters():
        if name.startswith("sight."):
            assert (p.grad is not None and bool(p.grad.any())) != name.startswith(kept), name
    ours.model.zero_grad()
