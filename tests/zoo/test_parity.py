"""Every family against an independent implementation: logits, padded batches, cached decoding, files both ways."""

from __future__ import annotations

import inspect

import pytest
import torch

from terakoya.model.context import Memory, Packed
from terakoya.zoo import convert, lineage
from tests.zoo.reference import CASES, FP32_NORMS, SIZES, STRANGERS, UNCACHED, UNPADDED, attention, mended, pair, prompt

pytestmark = pytest.mark.parity
pytest.importorskip("transformers", reason="needs terakoya[reference]")


def logits(model, *sequences):
    with torch.no_grad():
        return model.head(model(torch.cat(sequences), Packed([len(s) for s in sequences])))


def decode(model, tokens):
    """Logits of one-by-one decoding with memory."""
    memory, out = Memory(), []
    with torch.no_grad():
        for token in tokens.split(1):
            ctx = memory.step([1])
            out.append(model.head(model(token, ctx)))
            ctx.close()
    return torch.cat(out)


def tolerance(reference):
    return FP32_NORMS * max(1.0, reference.std().item())


@pytest.mark.parametrize("name", CASES)
def test_logits(name):
    theirs, ours, _ = pair(name)
    x = prompt(17)
    with torch.no_grad():
        want = theirs(x[None]).logits[0]
    got = logits(ours.model, x)
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance(want)


@pytest.mark.parametrize("name", [n for n in CASES if n not in UNPADDED])
def test_left_padded_batch_equals_packed(name):
    """Their batch of two prompts, padded on the left, equals ours packed without padding."""
    theirs, ours, _ = pair(name)
    a, b = prompt(12, 1), prompt(9, 2)
    ids = torch.stack([a, torch.cat([torch.full((3,), 2), b])])
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    takes = inspect.signature(theirs.forward).parameters  # OPT, BLOOM and MPT find positions from the mask
    more = {"position_ids": places} if "position_ids" in takes else {}
    with torch.no_grad():
        want = theirs(ids, attention_mask=mask, **more).logits
    got = logits(ours.model, a, b)
    assert (got[:12] - want[0]).abs().max() <= tolerance(want)
    assert (got[12:] - want[1, 3:]).abs().max() <= tolerance(want)


@pytest.mark.parametrize("name", [n for n in CASES if n not in UNCACHED])
def test_one_by_one_decoding_equals_one_forward(name):
    _, ours, _ = pair(name)
    x = prompt(14, 3)
    want = logits(ours.model, x)
    assert (decode(ours.model, x) - want).abs().max() <= tolerance(want)


@pytest.mark.parametrize("name", [n for n in CASES if n not in UNCACHED])
def test_greedy_generation(name):
    theirs, ours, _ = pair(name)
    x = prompt(6, 4)
    with torch.no_grad():
        want = theirs.generate(
            x[None], attention_mask=torch.ones_like(x[None]), max_new_tokens=8, do_sample=False, eos_token_id=None
        )[0]
    tokens = x
    for _ in range(8):
        tokens = torch.cat([tokens, logits(ours.model, tokens)[-1:].argmax(-1)])
    assert tokens.tolist() == want.tolist()


@pytest.mark.parametrize("name", CASES)
def test_saved_tensors_are_theirs_bit_for_bit(name):
    from safetensors.torch import load_file

    _, ours, folder = pair(name)
    want = load_file(folder / "model.safetensors")
    got = convert.tensors(ours.model, ours.family)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in want)


@pytest.mark.parametrize("name", CASES)
def test_our_own_config_reloads_and_transformers_opens_it(name, tmp_path):
    from transformers import AutoModelForCausalLM

    _, ours, _ = pair(name)
    fresh = convert.Loaded(ours.model, None, ours.family)  # forget their config.json: write our own
    convert.save(fresh, tmp_path)
    again = convert.load(tmp_path)
    assert again.spec == ours.spec
    x = prompt(9, 5)
    assert torch.equal(logits(again.model, x), logits(ours.model, x))
    theirs = mended(AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention(name)))
    with torch.no_grad():
        want = theirs(x[None]).logits[0]
    assert (logits(ours.model, x) - want).abs().max() <= tolerance(want)


NAMED = [f for f in lineage.families().values() if f.model_type and not f.when and f.name not in STRANGERS]


@pytest.mark.parametrize("family", NAMED, ids=lambda f: f.name)
def test_what_a_file_leaves_out_means_what_it_means_to_transformers(family):
    from transformers import AutoConfig

    full = AutoConfig.for_model(family.model_type).to_dict()
    sizes = {k: v for k, v in full.items() if k in SIZES or k == "model_type"}
    assert convert.spec_of(sizes, "config.json") == convert.spec_of(full, "config.json")
