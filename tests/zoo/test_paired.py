"""Encoders and encoder–decoders against transformers: logits, padding on either side, cached decoding, files."""

from __future__ import annotations

import pytest
import torch

from terakoya.model.context import Memory, Packed
from terakoya.zoo import convert
from tests.zoo.paired import ENCODERS, PAIRS, TOLERANCE, padded, pair, prompt, settle, takes

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers", reason="needs terakoya[reference]")

LEFT = ("t5", "mt5", "umt5", "switch", "flan")  # the others count positions from the first column, padding or not


def scores(out):
    """Their scores of every token: words, replaced or not; a bare encoder's vectors."""
    for name in ("logits", "prediction_logits", "last_hidden_state"):
        if (found := getattr(out, name, None)) is not None:
            return found if found.dim() == 3 else found[..., None]
    raise AssertionError(out.keys())


def read(model, *sequences, segments=None):
    """Ours: scores of every token, or vectors where there is no head."""
    ctx = Packed([len(s) for s in sequences], segments=segments)
    with torch.no_grad():
        hidden = model(torch.cat(sequences), ctx)
        return hidden if model.spec.head.scores == "nothing" else model.head(hidden)


def near(got, want):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= TOLERANCE * max(1.0, want.std().item())


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name):
    theirs, ours, _ = pair(name)
    x = prompt(17)
    types = ours.spec.embed.types
    segments = (torch.arange(17) >= 9).long() % max(1, types)
    more = {"token_type_ids": segments[None]} if types else {}
    with torch.no_grad():
        out = theirs(x[None], **more)
    near(read(ours.model, x, segments=segments if types else None), scores(out)[0])
    if ours.model.pool is not None:
        ctx = Packed([17], segments=segments)
        with torch.no_grad():
            pooled = ours.model.pool(ours.model(x, ctx), ctx)
            if ours.model.pool.pair is not None:
                want = getattr(out, "seq_relationship_logits", None)
                near(ours.model.pool.pair(pooled), want if want is not None else out.sop_logits)
            else:
                near(pooled, out.pooler_output)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("name", ENCODERS)
def test_padded_encoder_equals_packed(name, left):
    if name == "xlnet-uni":
        pytest.skip("transformers 5.23 cannot mask a batch of it")
    theirs, ours, _ = pair(name)
    a, b = prompt(12, 1), prompt(9, 2)
    ids, mask = padded(a, b, left)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    counted = takes(theirs, "position_ids") and theirs.config.model_type not in ("roberta", "xlm-roberta")
    with torch.no_grad():
        want = scores(theirs(ids, attention_mask=mask, **({"position_ids": places} if counted else {})))
    got = read(ours.model, a, b)
    near(got[:12], want[0])
    near(got[12:], want[1, 3:] if left else want[1, :9])


def decoded(model, source, target):
    with torch.no_grad():
        ctx = Packed([len(target)], source=model.encode(source, [len(source)]))
        return model.head(model(target, ctx))


@pytest.mark.parametrize("name", PAIRS)
def test_pair(name):
    theirs, ours, _ = pair(name)
    x, y = prompt(17), prompt(11, 1)
    with torch.no_grad():
        want = theirs(input_ids=x[None], decoder_input_ids=y[None]).logits[0]
    near(decoded(ours.model, x, y), want)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("name", PAIRS)
def test_padded_sources_equal_packed(name, left):
    if left and not name.startswith(LEFT):
        pytest.skip("transformers counts its positions from the padding on")
    if left and name == "switch-crowded":
        pytest.skip("transformers lets padding take the experts' seats")
    theirs, ours, _ = pair(name)
    a, b = prompt(12, 1), prompt(9, 2)
    y = torch.stack([prompt(7, 3), prompt(7, 4)])
    ids, mask = padded(a, b, left)
    with torch.no_grad():
        want = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=y).logits
        source = ours.model.encode(torch.cat([a, b]), [12, 9])
        got = ours.model.head(ours.model(y.flatten(), Packed([7, 7], source=source)))
    near(got, want.flatten(0, 1))


# An expert with little room passes over the latecomers of a sequence; alone in its step, nobody is late.
@pytest.mark.parametrize("name", [n for n in PAIRS if n != "switch-crowded"])
def test_one_by_one_decoding_equals_one_forward(name):
    _, ours, _ = pair(name)
    sources, targets = (prompt(12, 1), prompt(9, 2)), (prompt(6, 3), prompt(8, 4))
    model = ours.model
    with torch.no_grad():
        source = model.encode(torch.cat(sources), [12, 9])
        want = model.head(model(torch.cat(targets), Packed([6, 8], source=source)))
        memory, out = Memory(2, source=source), []
        for i in range(0, 6, 2):  # two at a time, from both
            ctx = memory.step([2, 2])
            out.append(model.head(model(torch.cat([t[i : i + 2] for t in targets]), ctx)).unflatten(0, (2, 2)))
            ctx.close()
    got = torch.cat(out, 1)
    near(got[0], want[:6])
    near(got[1], want[6:12])


@pytest.mark.parametrize("name", PAIRS)
def test_greedy_generation(name):
    theirs, ours, _ = pair(name)
    x = prompt(9, 5)
    with torch.no_grad():
        want = theirs.generate(
            x[None], attention_mask=torch.ones_like(x[None]), max_new_tokens=8, do_sample=False, num_beams=1,
            eos_token_id=None, forced_eos_token_id=None, bad_words_ids=None,
        )[0]  # fmt: skip
        memory, said = Memory(source=ours.model.encode(x, [9])), [2]
        for _ in range(8):
            ctx = memory.step([1])
            said.append(int(ours.model.head(ours.model(torch.tensor(said[-1:]), ctx))[-1].argmax()))
            ctx.close()
    assert said == want.tolist()


@pytest.mark.parametrize("name", [*ENCODERS, *PAIRS])
def test_saved_tensors_are_theirs_bit_for_bit(name):
    from safetensors.torch import load_file

    _, ours, folder = pair(name)
    want = load_file(folder / "model.safetensors")
    got = convert.tensors(ours.model, ours.family)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in want)


@pytest.mark.parametrize("name", [*ENCODERS, *PAIRS])
def test_our_own_config_reloads_and_transformers_opens_it(name, tmp_path):
    theirs, ours, _ = pair(name)
    convert.save(convert.Loaded(ours.model, None, ours.family), tmp_path)  # forget their config.json: write our own
    again = convert.load(tmp_path)
    assert again.spec == ours.spec
    assert again.family == ours.family
    x, y = prompt(9, 5), prompt(6, 6)
    opened = type(theirs).from_pretrained(tmp_path, attn_implementation="eager")
    settle(opened)
    with torch.no_grad():
        if name in PAIRS:
            near(decoded(again.model, x, y), opened(input_ids=x[None], decoder_input_ids=y[None]).logits[0])
        else:
            near(read(again.model, x), scores(opened(x[None]))[0])
