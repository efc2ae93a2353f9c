"""Six bugs that never crash: each would pass a smoke test, and each is shown to be absent."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from terakoya.engine.generate import generate
from terakoya.engine.sampling import History, Sampling, process
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.train.optim import AdamW, Optimizer
from terakoya.train.step import gradients, step
from terakoya.tune import adapters
from terakoya.tune.formats import Talk
from terakoya.tune.pack import Packer, laid
from terakoya.tune.plans import Lora
from terakoya.tune.recompute import recompute
from terakoya.tune.samples import Sample, encode
from terakoya.tune.score import answers, targets_of, token_scores
from tests.tune.test_data import some_samples
from tests.tune.tune_fakes import loud, messages, small, tokenizer


def adapted(seed: int = 0) -> Model:
    model = small(seed)
    adapters.add(model, Lora(4, 8.0))
    loud(model, seed)
    return model


def grads(model: Model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in adapters.trained(model).values() if p.grad is not None])


def test_micro_batches_change_nothing() -> None:
    packer = Packer(some_samples(), tokenizer(), rows=6, context=40, seed=0)
    batch = packer.batch(1)
    whole = adapted()
    loss, _, _ = gradients(whole, [batch], answers)
    want = grads(whole)
    for n in (2, 3, 6):
        parts = batch.split(n)
        assert len({p.weight for p in parts}) > 1  # unequal shares: where averages of averages go wrong
        model = adapted()
        again, _, _ = gradients(model, parts, answers)
        assert abs(loss - again) < 1e-6
        assert (grads(model) - want).abs().max() <= 1e-6 * want.abs().max()
        naive = adapted()
        for part in parts:
            (answers(naive, part).loss / part.weight / n).backward()
        assert (grads(naive) - want).abs().max() > 1e-2 * want.abs().max()  # what the bug would give


def test_a_batch_without_anything_to_learn_moves_nothing(tmp_path: Path) -> None:
    model = adapted()
    before = copy.deepcopy(model.state_dict())
    silent = laid([Sample("x", (5, 6, 7, 8), (0.0,) * 4)], (3,))
    result = step(model, [silent], answers, Optimizer(model, AdamW(weight_decay=0.1)), factor=1.0)
    assert (result.moved, result.loss) == (False, 0.0)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    half = [silent, laid([Sample("x", (5, 6, 7, 8), (0.0, 0.0, 1.0, 1.0))], (3,))]
    assert step(model, half, answers, Optimizer(model, AdamW()), factor=1.0).moved
    with pytest.raises(TerakoyaError, match="here: can never teach anything"):
        encode(tokenizer(), Talk("here", messages("質問だけ")))


def test_pad_is_eos_and_eos_is_learnt() -> None:
    tok = tokenizer()
    assert tok.pad == tok.eos  # the usual setting in which masking by id kills the stop token
    sample = encode(tok, Talk("x", messages("一たす一は？", "二です。", "二たす二は？", "四です。")))
    stops = [w for i, w in zip(sample.ids, sample.weights) if i == tok.eos]
    assert stops == [0.0, 0.0, 1.0, 0.0, 1.0] or stops == [0.0, 1.0, 0.0, 1.0]
    model = small()
    loss = answers(model, laid([sample])).loss
    hidden = model(torch.tensor(sample.ids[:-1]), Packed([sample.length]))
    by_hand = -torch.log_softmax(model.head(hidden), -1).gather(-1, torch.tensor(sample.ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(loss, (by_hand * torch.tensor(sample.weights[1:])).sum())


def test_the_stop_token_receives_gradient() -> None:
    tok = tokenizer()
    sample = encode(tok, Talk("x", messages("一たす一は？", "二です。")))
    assert sample.ids[-1] in tok.stops
    assert sample.weights[-1] == 1.0
    only_stop = Sample("x", sample.ids, (0.0,) * (len(sample.ids) - 1) + (1.0,))
    model = adapted()
    gradients(model, [laid([only_stop], (only_stop.length,))], answers)
    assert grads(model).abs().max() > 1e-4


def test_packs_do_not_leak() -> None:
    model, rng = adapted(), random.Random(99)
    samples = some_samples(5)
    batch = laid(samples)
    before = token_scores(model, batch).detach()
    owner = torch.repeat_interleave(torch.arange(5), batch.cu.diff().long())[batch.weights != 0]
    for changed in range(5):
        other = list(samples)
        ids = tuple(rng.randrange(3, 200) for _ in samples[changed].ids)
        other[changed] = Sample("x", ids, samples[changed].weights)
        after = token_scores(model, laid(other)).detach()
        assert torch.equal(before[owner != changed], after[owner != changed])
        assert not torch.equal(before[owner == changed], after[owner == changed])
    alone = torch.cat([token_scores(model, laid([s])).detach() for s in samples])
    torch.testing.assert_close(before, alone, atol=2e-6, rtol=1e-5)


def test_what_is_sampled_is_what_is_scored() -> None:
    """The engine's log-probability of each drawn token is that of the processed distribution, stop token included."""
    model, tok = adapted(), tokenizer()
    prompt = tok.encode("寺子屋")
    sampling = Sampling(temperature=0.7, top_k=5, max_tokens=12, seed=3)
    drawn = list(generate(model, tok, prompt, sampling))
    ids = [t.id for t in drawn]
    sample = Sample("x", (*prompt, *ids), (0.0,) * len(prompt) + (1.0,) * len(ids))
    batch = laid([sample])
    hidden = model(batch.tokens, Packed([sample.length]))[batch.weights != 0]
    logits = model.head(hidden).float().detach()
    for t, row in zip(drawn, logits, strict=True):
        assert abs(process(row, History(prompt), sampling)[t.id].item() - t.logprob) < 1e-5
    full = targets_of(model.head, hidden, torch.tensor(ids)).detach()
    assert (full - torch.tensor([t.raw for t in drawn])).abs().max() < 1e-5
    assert (full - torch.tensor([t.logprob for t in drawn])).abs().max() > 0.1  # the two are not the same thing


def test_scores_in_chunks_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = laid(some_samples(8))
    out = []
    for chunk in (2**30, 900):
        monkeypatch.setattr("terakoya.tune.score.CHUNK", chunk)
        model = adapted()
        scores = token_scores(model, batch, temperature=0.8)
        (scores * torch.linspace(-1, 1, len(scores))).sum().backward()
        out.append((scores.detach(), grads(model)))
    torch.testing.assert_close(out[0], out[1], atol=1e-6, rtol=1e-5)
    model = adapted()
    hidden = model(batch.tokens, Packed(batch.cu.diff().tolist()))
    want = F.log_softmax(model.head(hidden) / 0.8, -1).gather(-1, batch.targets[:, None])[batch.weights != 0, 0]
    torch.testing.assert_close(out[0][0], want.detach(), atol=1e-5, rtol=1e-5)


def test_computing_again_changes_no_bit() -> None:
    batch = laid(some_samples(8))
    out = []
    for again in (False, True):
        model = adapted()
        if again:
            recompute(model)
        loss, _, _ = gradients(model, [batch], answers)
        out.append((loss, grads(model)))
    assert out[0][0] == out[1][0]
    assert torch.equal(out[0][1], out[1][1])
