"""What each objective asks: corruptions are pure and reversible, and losses are those of the papers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.train.objective import causal
from terakoya.train.objectives import (
    Bart,
    Causal,
    Contrast,
    Distil,
    Fim,
    Mlm,
    Mtp,
    Nsp,
    Permute,
    Plan,
    Prefix,
    Rtd,
    Sop,
    Spans,
    Taught,
    Ul2,
)
from terakoya.train.objectives.contrast import clip, info_nce, pooled
from terakoya.train.objectives.mask import choose, corrupt
from terakoya.train.objectives.middle import middle_last
from terakoya.train.objectives.noise import infill, shuffled
from terakoya.train.objectives.pair import means
from terakoya.train.objectives.rows import Rich, dice
from terakoya.train.objectives.signs import FIM, MODES, Signs, sentinels
from terakoya.train.objectives.spans import cut, gaps, left_out
from terakoya.train.objectives.words import by_mecab, by_script, starts
from terakoya.zoo import lineage
from tests.train.objective_fakes import TEXTS, batch_of, both, made, small, some, table, tokenizer

SIGNS = Signs(tokenizer())
PLANS: tuple[Plan, ...] = (
    Causal(), Prefix(), Mlm(), Mlm(unit="script"), Mlm(copies=3), Nsp(), Nsp(pool="segments"), Sop(), Rtd(), Permute(),
    Spans(sentinels=24), Ul2(sentinels=24), Bart(), Bart(noises=("mask", "delete", "rotate")), Fim(), Mtp(ahead=2),
    Distil("x"), Contrast(), Contrast(views="crops"),
)  # fmt: skip


def name(plan: Plan) -> str:
    return type(plan).__name__.lower()


def fitting(plan: Plan, way: str = "") -> str:
    return way or plan.sorts[0] if not isinstance(plan, Distil) else "encoder"


def spec_for(plan: Plan):
    return small(causal=isinstance(plan, Causal | Mtp | Fim | Prefix))


def task_of(plan: Plan):
    task = plan.task(tokenizer(), spec_for(plan), 7)
    if isinstance(task, Taught):
        task.teach(made(spec_for(plan), task, 5), tokenizer())
    return task


# What all have in common


@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_a_step_is_a_pure_function_and_splits_along_rows(plan: Plan) -> None:
    task, batch = task_of(plan), some()
    one, again, later = task.arrange(batch, 3), task_of(plan).arrange(batch, 3), task.arrange(batch, 4)
    assert torch.equal(one.tokens, again.tokens)
    assert torch.equal(one.targets, again.targets)
    assert torch.equal(one.weights, again.weights)
    if isinstance(one, Rich) and isinstance(again, Rich):
        assert all(torch.equal(one[k], again[k]) for k in one.more)
    changes = not isinstance(plan, Causal | Mtp) and not (isinstance(plan, Contrast) and plan.views == "dropout")
    same = all(torch.equal(getattr(one, k), getattr(later, k)) for k in ("tokens", "weights", "positions"))
    assert changes == (not same)
    parts = one.split(2)
    assert torch.equal(torch.cat([p.tokens for p in parts]), one.tokens)
    assert sum(len(p.cu) - 1 for p in parts) == len(one.cu) - 1
    if isinstance(one, Rich):
        for key in one.more:
            assert torch.equal(torch.cat([p[key] for p in parts if isinstance(p, Rich)]), one[key])


@pytest.mark.parametrize("plan", [p for p in PLANS if not p.whole and not isinstance(p, Rtd)], ids=name)
def test_the_loss_of_a_step_is_the_sum_over_its_parts(plan: Plan) -> None:
    task = task_of(plan)
    model, batch = made(spec_for(plan), task), task.arrange(some(), 0)
    whole = task.loss(model, batch).loss
    parts = sum(task.loss(model, part).loss for part in batch.split(3))
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)
    whole.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_control_tokens_of_the_text_are_never_to_be_named(plan: Plan) -> None:
    batch = task_of(plan).arrange(some(), 1)
    if isinstance(plan, Mlm | Nsp | Sop | Permute):
        assert not SIGNS.special[batch.targets[batch.weights != 0].numpy()].any()
    assert len(batch.tokens) == int(batch.cu[-1]) == batch.row_ends[-1]
    assert batch.weight > 0


@pytest.mark.parametrize("plan", [p for p in PLANS if p.sorts == ("encoder",)], ids=name)
def test_a_decoder_is_refused_where_both_sides_are_needed(plan: Plan) -> None:
    with pytest.raises(TerakoyaError, match="cannot train this model"):
        plan.check(small())


def test_missing_marks_are_named() -> None:
    from terakoya.tokenizer import train

    bare = train(["いろは"], "bytes", 300)
    with pytest.raises(TerakoyaError, match=r"has no \[MASK\]"):
        Mlm().task(bare, small(causal=False), 0)


# Masked tokens


@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1, max_size=60), st.integers(0, 99), st.sampled_from([0.1, 0.15, 0.5]))
def test_masks_keep_their_share_and_touch_only_text(text: str, seed: int, share: float) -> None:
    ids = SIGNS.framed(np.array(tokenizer().encode(text)))
    tokens, chosen = corrupt(ids, Mlm(share=share), SIGNS, dice(seed))
    ordinary = int((~SIGNS.special[ids]).sum())
    assert chosen.sum() == max(1, round(share * ordinary))
    assert (tokens == ids)[~chosen].all()
    assert not SIGNS.special[ids[chosen]].any()


def test_eighty_ten_ten() -> None:
    ids = np.full(40_000, 65)
    tokens, chosen = corrupt(ids, Mlm(), SIGNS, dice(1))
    said = tokens[chosen]
    assert abs((said == SIGNS.mask).mean() - 0.8) < 0.02
    assert abs((said == 65).mean() - 0.1) < 0.02  # a random token is seldom the same one


def test_static_masks_repeat_and_dynamic_ones_do_not() -> None:
    batch = some()
    fixed = Mlm(copies=2).task(tokenizer(), small(causal=False), 0)
    seen = [fixed.arrange(batch, step).weights for step in range(4)]
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3]) and not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_hidden_whole(text: str) -> None:
    ids = np.array(tokenizer().encode(text))
    begins = starts(ids, tokenizer(), by_script)
    assert begins[0]
    words = np.cumsum(begins)
    for seed in range(8):
        chosen = choose(np.ones(len(ids), bool), 0.3, dice(seed), begins)
        for word in set(words[chosen].tolist()):
            assert chosen[words == word].all()


def test_japanese_words_by_script() -> None:
    assert by_script("吾輩は猫である。ﾃﾗｺﾔでteaを2杯") == [
        "吾輩は",
        "猫である",
        "。",
        "ﾃﾗｺﾔ",
        "で",
        "tea",
        "を",
        "2",
        "杯",
    ]
    for text in TEXTS:
        assert "".join(by_script(text)) == text


def test_japanese_words_by_mecab() -> None:
    pytest.importorskip("unidic_lite")
    assert by_mecab("吾輩は猫である。") == ["吾輩", "は", "猫", "で", "ある", "。"]
    for text in (*TEXTS, " 空白 も 残る ", "猫"[:0]):
        assert "".join(by_mecab(text)) == text
    ids = np.array(tokenizer().encode("猫が好き"))[1:]  # begins inside a character
    begins = starts(ids, tokenizer(), by_mecab)
    assert begins.sum() >= 3
    task = Mlm(unit="mecab").task(tokenizer(), small(causal=False), 0)
    assert task.arrange(some(), 0).weight > 0


def test_masked_loss_by_hand() -> None:
    """Wherever it reads [MASK] the model says a certain distribution: the loss is its mean surprise."""
    scores = torch.zeros(len(SIGNS.special), len(SIGNS.special))
    scores[SIGNS.mask, 65] = math.log(3.0)
    task = Mlm(mask=1.0, random=0.0).task(tokenizer(), small(causal=False), 0)
    batch = task.arrange(batch_of([["AB" * 40]]), 0)
    named = batch.targets[batch.weights != 0]
    total = len(SIGNS.special) + 2.0  # e^0 for all but one, which has 3
    expected = sum(-math.log((3.0 if t == 65 else 1.0) / total) for t in named.tolist())
    assert math.isclose(task.loss(table(scores, False), batch).loss.item(), expected, rel_tol=1e-5)
    assert len(named) == 12


# Pairs


@pytest.mark.parametrize("plan", [Nsp(), Sop()], ids=name)
def test_pairs_are_what_their_label_says(plan: Plan) -> None:
    task, batch = task_of(plan), some()
    texts = {bytes(tokenizer().encode(t)) for t in TEXTS}
    labels = []
    for step in range(12):
        found = task.arrange(batch, step)
        assert isinstance(found, Rich)
        for i, (a, b) in enumerate(zip(found.cu[:-1].tolist(), found.cu[1:].tolist())):
            ids, second = found.targets[a:b].numpy(), found["segments"][a:b].numpy() == 1
            first, then = (bytes(SIGNS.body(ids[s]).tolist()) for s in (~second, second))
            label = int(found["label"][i])
            labels.append(label)
            if label == 0:
                assert first + then in texts
            elif isinstance(plan, Sop):
                assert then + first in texts
            else:
                assert any(then in t for t in texts)
                assert first + then not in texts
    assert 0.3 < sum(labels) / len(labels) < 0.7


@pytest.mark.parametrize("plan", [Sop(), Nsp(pool="segments")], ids=name)
def test_pair_loss_by_hand(plan: Plan) -> None:
    """A model of zeros knows nothing: log V for each masked token, and log 2 for each pair at the same total weight."""
    task, vocab = task_of(plan), len(SIGNS.special)
    batch = task.arrange(some(), 0)
    model = task.joined(table(torch.zeros(vocab, vocab), False))
    with torch.no_grad():
        for p in model.get_submodule("extra").parameters():
            p.zero_()
    expected = batch.weight * (math.log(vocab) + math.log(2))
    assert math.isclose(task.loss(model, batch).loss.item(), expected, rel_tol=1e-5)


def test_means_of_segments_by_hand() -> None:
    hidden = torch.tensor([[1.0, 0], [3, 0], [0, 5], [4, 4], [0, 2], [0, 4]])
    u, v = means(hidden, torch.tensor([0, 3, 6], dtype=torch.int32), torch.tensor([0, 0, 1, 0, 1, 1]))
    assert u.tolist() == [[2, 0], [4, 4]]
    assert v.tolist() == [[0, 5], [0, 3]]


def test_a_pair_head_of_the_model_reads_its_own_token() -> None:
    s = replace(small(causal=False), pool=spec.Pooler(classes=2))
    with pytest.raises(TerakoyaError, match="pair head reads"):
        Nsp(pool="segments").task(tokenizer(), s, 0)
    assert Nsp().task(tokenizer(), s, 0).companion(s) is None


# Replaced tokens


@pytest.mark.parametrize("tied", [False, True])
def test_detection_by_hand(tied: bool) -> None:
    """A generator and a discriminator of zeros: log V a gap, and 50 · log 2 a token."""
    plan = Rtd(weight=50.0, tied=tied)
    task, s = task_of(plan), small(causal=False)
    model = made(s, task)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    batch = task.arrange(some(), 0)
    found = task.loss(model, batch)
    expected = batch.weight * (math.log(s.vocab) + 50 * math.log(2))
    assert math.isclose(found.loss.item(), expected, rel_tol=1e-5)
    assert found.metrics["replaced"] <= batch.weight * 0.2


def test_generator_reads_the_same_table_and_is_smaller() -> None:
    s = small(causal=False)
    model = made(s, task_of(Rtd()))
    beside = {n: p for n, p in model.named_parameters() if n.startswith("extra.generator")}
    assert not any("embed.token" in n for n in beside)
    assert sum(p.numel() for p in beside.values()) < sum(p.numel() for p in model.layers.parameters())


def test_a_model_that_is_its_own_generator() -> None:
    """Both tasks reach the same weights, and beside the model stands a head only."""
    s, plan = small(causal=False), Rtd(tied=True)
    task = task_of(plan)
    model = made(s, task)
    assert all(n.startswith("extra.detect.") for n, _ in model.named_parameters() if n.startswith("extra."))
    batch = task.arrange(some(), 0)
    task.loss(model, replace(batch, weights=batch.weights * 0)).loss.backward()  # the gaps alone
    assert all(p.grad is not None and p.grad.any() for p in model.layers.parameters())
    with pytest.raises(TerakoyaError, match="tied"):
        plan.check(lineage.base("electra"))


# Orders and prefixes


def leaks(plan: Plan, changed: int, step: int = 2) -> set[int]:
    """Which predictions, by the position of the target, move when the token at one position is another?"""
    task = plan.task(tokenizer(), small(), 7)
    model = made(small(), task, std=0.4)
    one = task.arrange(batch_of([["abcdefghijkl"]]), step)
    assert isinstance(one, Rich)
    before = torch.log_softmax(_logits(plan, model, one), -1)
    tokens = one.tokens.clone()
    where = (one.positions == changed) & (tokens != SIGNS.mask)
    tokens[where] = 90
    after = torch.log_softmax(_logits(plan, model, replace(one, tokens=tokens)), -1)
    moved = ((before - after).abs().amax(-1) > 1e-6) & (one.weights != 0)
    shift = 0 if isinstance(plan, Permute) else 1
    return {int(p) + shift for p in one.positions[moved]}


def _logits(plan: Plan, model, batch: Rich):
    from terakoya.train.objectives.sight import ordered, prefixed

    ctx = (
        ordered(batch, batch["rank"], batch["query"]) if isinstance(plan, Permute) else prefixed(batch, batch["prefix"])
    )
    with torch.no_grad():
        return model.head(model(batch.tokens, ctx))


def test_permutation_sees_what_comes_earlier_in_the_order_and_nothing_else() -> None:
    plan = Permute(share=0.5)
    batch = plan.task(tokenizer(), small(), 7).arrange(batch_of([["abcdefghijkl"]]), 2)
    assert isinstance(batch, Rich)
    content = ~batch["query"]
    rank = batch["rank"][content]
    named = {int(p): int(r) for p, r in zip(batch.positions[~content], batch["rank"][~content])}
    assert len(named) == 6 and sorted(named.values()) == [1, 2, 3, 4, 5, 6]
    for at in range(len(rank)):
        assert leaks(plan, at) == {p for p, r in named.items() if int(rank[at]) < r}


def test_a_prefix_is_seen_whole_and_the_rest_only_backwards() -> None:
    step = next(i for i in range(99) if 3 < int(dice(7, i, 0).integers(1, 13)) < 10)
    batch = Prefix().task(tokenizer(), small(), 7).arrange(batch_of([["abcdefghijkl"]]), step)
    assert isinstance(batch, Rich)
    prefix, count = int(batch["prefix"][0]), len(batch.tokens)
    assert 2 < prefix < count
    for at in range(count):
        first = prefix if at < prefix else at + 1
        assert leaks(Prefix(), at, step) == set(range(first, count + 1))


def test_a_window_is_refused_where_the_mask_says_more() -> None:
    s = small()
    narrow = replace(s, blocks=(spec_window(),))
    task = Prefix().task(tokenizer(), narrow, 0)
    with pytest.raises(TerakoyaError, match="without windows"):
        task.loss(made(narrow, task), task.arrange(some(), 0))


def spec_window():
    return spec.pre(spec.RMSNorm(), spec.Attention(heads=4, position=spec.Rope(), reach=spec.Window(4)))


# Gaps


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 300), st.floats(0.05, 0.6), st.floats(1, 64), st.integers(0, 999))
def test_gaps_have_their_share_and_give_the_text_back(length: int, share: float, mean: float, seed: int) -> None:
    body, rng = np.arange(length), dice(seed)
    noise = gaps(length, share, mean, rng)
    assert noise.sum() == min(max(1, round(length * share)), length - 1)
    assert not noise[0]
    signs = np.arange(1000, 1400)
    source, target = left_out(body, noise, signs, 9999)
    assert _restored(source, target) == body.tolist()


def _restored(source: np.ndarray, target: np.ndarray) -> list[int]:
    """Put the gaps back where their sentinels stand."""
    filled: dict[int, list[int]] = {}
    for token in target[:-1].tolist():
        if token >= 1000:
            filled[token] = []
        else:
            filled[list(filled)[-1]].append(token)
    return [t for token in source[:-1].tolist() for t in (filled[token] if token >= 1000 else [token])]


def test_gaps_by_hand() -> None:
    body, noise = np.array([10, 11, 12, 13, 14, 15]), np.array([0, 1, 1, 0, 0, 1], bool)
    source, target = left_out(body, noise, np.array([90, 91]), 1)
    assert source.tolist() == [10, 90, 13, 14, 91, 1]
    assert target.tolist() == [90, 11, 12, 91, 15, 1]
    with pytest.raises(TerakoyaError, match="2 or more"):
        left_out(body, noise, np.array([90]), 1)


@given(st.integers(1, 60), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_cuts(total: int, seed: int) -> None:
    parts = cut(total, 1 + seed % total, dice(seed))
    assert parts.sum() == total and (parts >= 1).all() and len(parts) == 1 + seed % total


@pytest.mark.parametrize("plan", [Spans(sentinels=24), Ul2(sentinels=24), Bart()], ids=name)
def test_encoder_and_decoder_learn_the_same_pairs_as_one_stack(plan: Plan) -> None:
    """With zeros for weights both say log V for every target token."""
    batch, losses = some(), []
    for s in (small(), both()):
        task = plan.task(tokenizer(), s, 3)
        model = made(s, task)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        arranged = task.arrange(batch, 0)
        losses.append(task.loss(model, arranged).loss.item())
        assert math.isclose(losses[-1], arranged.weight * math.log(s.vocab), rel_tol=1e-5)
        room = plan.room(max(len(p) for p in batch.tokens.split(batch.cu.diff().tolist())), s.encoder is None)
        assert int(arranged.cu.diff().max()) <= room
    assert math.isclose(*losses, rel_tol=1e-6)


def test_the_encoder_is_read() -> None:
    s, task = both(), Spans(sentinels=24).task(tokenizer(), both(), 3)
    model, batch = made(s, task, std=0.3), task.arrange(some(), 0)
    assert isinstance(batch, Rich)
    loss = task.loss(model, batch).loss
    other = replace(batch, more={**batch.more, "source": replace(batch.more["source"], values=batch["source"].roll(1))})
    assert not torch.isclose(loss, task.loss(model, other).loss)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_modes_announce_their_denoiser() -> None:
    task = Ul2(sentinels=100).task(_many(), small(vocab=500), 0)
    signs, seen = Signs(_many()), set()
    for step in range(40):
        batch = task.arrange(batch_of([["abcdefghijklmnopqrstuvwxyz" * 3]], _many()), step)
        assert isinstance(batch, Rich)
        seen.add(int(batch.tokens[0]))
        if batch.tokens[0] == signs.id(MODES[2]):  # a continuation: one gap, at the end
            source = batch.tokens[: int(batch["prefix"][0])].tolist()
            assert source[-2] == signs.id(sentinels(1)[0])
            assert source[1:-2] == _many().encode("abcdefghijklmnopqrstuvwxyz" * 3)[: len(source) - 3]
    assert seen == {signs.id(m) for m in MODES}


def _many():
    from terakoya.tokenizer import train
    from tests.train.objective_fakes import MARKS

    return train(["いろは"], "bytes", 500, tuple(dict.fromkeys((*MARKS, *sentinels(100)))))


# BART


@given(st.integers(2, 200), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_infilling_keeps_what_it_does_not_hide(length: int, seed: int) -> None:
    ids = np.arange(length)
    out = infill(ids, 0.3, 3.0, -1, dice(seed))
    kept = out[out >= 0]
    assert (np.diff(kept) > 0).all()
    assert len(kept) >= length - max(1, round(0.3 * length))
    assert (out == -1).sum() >= 1


def test_sentences_are_shuffled_whole() -> None:
    ids = np.array([1, 2, 0, 3, 0, 4, 5, 6])
    seen = {tuple(shuffled(ids, ids == 0, dice(seed)).tolist()) for seed in range(60)}
    parts = [(1, 2, 0), (3, 0), (4, 5, 6)]
    import itertools

    assert seen == {tuple(x for part in order for x in part) for order in itertools.permutations(parts)}


@pytest.mark.parametrize("noise", ["mask", "delete", "infill", "permute", "rotate"])
def test_bart_says_the_text_itself(noise) -> None:
    task = Bart(noises=(noise,)).task(tokenizer(), both(), 0)
    batch = task.arrange(batch_of([[TEXTS[0]]]), 0)
    assert isinstance(batch, Rich)
    text = tokenizer().encode(TEXTS[0])
    assert batch.targets.tolist() == [*text, SIGNS.end]
    source = SIGNS.body(batch["source"].numpy()).tolist()
    if noise in ("permute", "rotate"):
        assert sorted(source) == sorted(text)
    else:
        assert len(source) == len(text) - round(0.3 * len(text))


# The middle


def test_middle_by_hand() -> None:
    p, m, s = np.array([1, 2]), np.array([3]), np.array([4, 5])
    assert middle_last(p, m, s, (90, 91, 92), 9, spm=False).tolist() == [90, 1, 2, 92, 4, 5, 91, 3, 9]
    assert middle_last(p, m, s, (90, 91, 92), 9, spm=True).tolist() == [90, 92, 4, 5, 91, 1, 2, 3, 9]


def test_middle_keeps_every_token_and_some_pieces_as_they_were() -> None:
    task, batch = task_of(Fim()), batch_of([[t] for t in TEXTS * 5])
    found = task.arrange(batch, 0)
    pre = SIGNS.id(FIM[0])
    moved = 0
    for i, (a, b) in enumerate(zip(found.cu[:-1].tolist(), found.cu[1:].tolist())):
        ids = [*found.tokens[a:b].tolist(), int(found.targets[b - 1])]
        text = tokenizer().encode((TEXTS * 5)[i])
        if pre in ids:
            moved += 1
            assert sorted(SIGNS.body(np.array(ids)).tolist()) == sorted(text)
        else:
            assert ids[1:] == text
    assert 8 <= moved <= 22


def test_middle_loss_by_hand() -> None:
    task = Fim(share=1.0).task(tokenizer(), small(), 0)
    batch = task.arrange(batch_of([["abc"]]), 0)
    vocab = len(SIGNS.special)
    assert batch.weight == 3 + 4  # a, b, c, three marks and the end; the first token has no past
    loss = task.loss(table(torch.zeros(vocab, vocab)), batch).loss.item()
    assert math.isclose(loss, 7 * math.log(vocab), rel_tol=1e-5)


# Further ahead


def test_ahead_by_hand_and_without_leaks() -> None:
    plan = Mtp(ahead=2, weight=0.6)
    task, s = task_of(plan), small()
    model = made(s, task, std=0.3)
    batch = batch_of([["abcdef"], ["gh"]])
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    vocab = math.log(s.vocab)
    # 6 + 2 targets, of which the first of each piece has no token two before, and so on: 6 + 1 at the third
    expected = (6 + 2) * vocab + 0.3 * ((5 + 1) * vocab + (4 + 0) * vocab)
    assert math.isclose(task.loss(model, batch).loss.item(), expected, rel_tol=1e-5)


def test_ahead_does_not_see_its_target() -> None:
    task = task_of(Mtp())
    model, batch = made(small(), task, std=0.3), batch_of([["abcdef"]])
    tokens = batch.tokens.clone().requires_grad_(False)
    from terakoya.train.objective import context_of

    last = replace(batch, weights=torch.zeros_like(batch.weights).index_fill(0, torch.tensor([5]), 1.0))
    one = task.loss(model, last)
    tokens[6] = 90  # the token after the last that counts
    two = task.loss(model, replace(last, tokens=tokens))
    assert math.isclose(one.loss.item(), two.loss.item(), rel_tol=1e-6)
    assert one.metrics["ahead_1_loss"] > 0
    assert causal(model, last).loss.item() == pytest.approx(one.metrics["next_loss"], rel=1e-6)
    assert context_of(last).cu == [0, 7]


# Teachers


def test_three_losses_by_hand() -> None:
    """The teacher says 3 : 1 : 1 …, the student nothing: KL is log V - H(teacher) at temperature 1."""
    vocab = len(SIGNS.special)
    plan = Distil("x", temperature=1.0, text=2.0, soft=5.0, cosine=1.0)
    scores = torch.zeros(vocab, vocab)
    scores[:, 65] = math.log(3.0)
    teacher, student = table(scores, False), table(torch.zeros(vocab, vocab), False)
    with torch.no_grad():
        student.embed.token.weight[:, 66] = 1e-4  # a direction at right angles to the teacher's
    task = plan.task(tokenizer(), replace(small(causal=False), dim=vocab), 0)
    assert isinstance(task, Taught)
    task.teach(teacher, tokenizer())
    batch = task.arrange(some(), 0)
    p = torch.full((vocab,), 1 / (vocab + 2.0))
    p[65] *= 3
    kl = math.log(vocab) + (p * p.log()).sum().item()
    expected = batch.weight * (2 * math.log(vocab) + 5 * kl + 1.0)
    assert math.isclose(task.loss(student, batch).loss.item(), expected, rel_tol=1e-3)


def test_another_vocabulary_cannot_teach() -> None:
    task = Distil("x").task(tokenizer(), small(causal=False), 0)
    assert isinstance(task, Taught)
    with pytest.raises(TerakoyaError, match="another vocabulary"):
        task.teach(made(small(causal=False), task), _many())


# Contrast


def test_info_nce_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    losses, right = info_nce(a, a.flip(1) + a, 0.5)
    cos = 1 / math.sqrt(2)
    assert torch.allclose(losses, torch.full((2,), math.log(2.0)))  # both are as near
    losses, right = info_nce(a, a, 0.5)
    assert torch.allclose(losses, torch.full((2,), math.log(1 + math.exp(-2.0))))
    assert right.tolist() == [1.0, 1.0]
    hard, _ = info_nce(a, a, 0.5, negatives=torch.tensor([[1.0, 1.0]]))
    assert torch.allclose(hard, torch.full((2,), math.log(1 + math.exp(-2.0) + math.exp(2 * (cos - 1)))))


def test_clip_by_hand() -> None:
    image, text = torch.eye(3), torch.eye(3)[[1, 0, 2]]
    own, other = math.exp(0.0), math.exp(2.0)
    wrong = -math.log(own / (other + 2 * own))
    right = -math.log(other / (other + 2 * own))
    assert math.isclose(clip(image, text, 2.0).item(), (2 * wrong + right) / 3, rel_tol=1e-6)


def test_pooling() -> None:
    hidden, cu = torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([0, 2, 3])
    found = {kind: pooled(hidden, cu, kind)[:, 0].tolist() for kind in ("first", "last", "mean", "max")}
    assert found == {"first": [1, 8], "last": [3, 8], "mean": [2, 8], "max": [3, 8]}


def test_dropout_is_a_function_of_the_step() -> None:
    task = task_of(Contrast(length=16))
    model, batch = made(small(causal=False), task), task.arrange(some(), 0)
    first = task.loss(model, batch).loss
    torch.manual_seed(99)
    assert torch.equal(first, task.loss(model, batch).loss)
    assert not torch.equal(first, task.loss(model, task.arrange(some(), 1)).loss)
    a, b = batch.cu.diff()[0::2], batch.cu.diff()[1::2]
    assert torch.equal(a, b)
