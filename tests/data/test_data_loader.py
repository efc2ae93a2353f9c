from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.data import Batch, Loader, Mix, Shards
from terakoya.errors import TerakoyaError
from tests.data.data_fakes import TEXTS, Bytes, made

STYLES = ["prefix", "suffix", "both", "none"]
LONG = [f"{text} {i}" * (i % 5 + 1) for i in range(12) for text in TEXTS]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return made(tmp_path_factory.mktemp("data") / "s", LONG, shard_tokens=333)


def rows_of(batch: Batch, context: int) -> list[bytes]:
    return [row.numpy().tobytes() for row in batch.tokens.split(context)]


def same(a: Batch, b: Batch) -> bool:
    names = ("tokens", "targets", "weights", "cu", "positions")
    return (a.bytes, a.row_ends, a.row_bytes) == (b.bytes, b.row_ends, b.row_bytes) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in names
    )


def naive(shards: Shards, begin: int, context: int) -> tuple[list[float], list[int], list[int], int]:
    """Weights, piece starts, positions and bytes of one row, token by token, as the rules are written."""
    starts = set(shards.starts[:-1].tolist())
    prefix, suffix = shards.index.prefix, shards.index.suffix
    weights, pieces, positions, size = [], [], [], 0
    for t in range(context):
        if t == 0 or begin + t in starts:
            pieces.append(t)
        positions.append(t - pieces[-1])
        counts = begin + t + 1 not in starts or (bool(prefix) and not suffix)
        weights.append(float(counts))
        target = int(shards.slice(begin + t + 1, begin + t + 2)[0])
        size += int(shards.token_bytes[target]) if counts else 0
    return weights, pieces, positions, size


@settings(max_examples=80, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="aか👩\n", min_size=1, max_size=12), min_size=1, max_size=12),
    style=st.sampled_from(STYLES),
    rows=st.integers(1, 4),
    context=st.integers(1, 9),
    shard_tokens=st.integers(1, 40),
)
def test_batches_follow_the_rules(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], style: str, rows: int, context: int, shard_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("rules") / "s"
    shards = made(folder, [*texts, "abcdefghij"], style, shard_tokens=shard_tokens)
    loader = Loader(shards, rows=rows, context=context, seed=3)
    full = (shards.tokens - 1) // context
    assert full * context + loader.tail == shards.tokens - 1
    stream = shards.slice(0, shards.tokens)
    for step in range(loader.steps_per_epoch):
        batch, (_, chosen) = loader.batch(step), loader._chosen(step)
        assert (batch.tokens.dtype, batch.weights.dtype, batch.cu.dtype) == (torch.int64, torch.float32, torch.int32)
        pieces, sizes = [], []
        for i, begin in enumerate((chosen * context).tolist()):
            here = slice(i * context, (i + 1) * context)
            weights, starts, positions, size = naive(shards, begin, context)
            assert batch.tokens[here].tolist() == stream[begin : begin + context].tolist()
            assert batch.targets[here].tolist() == stream[begin + 1 : begin + context + 1].tolist()
            assert batch.weights[here].tolist() == weights
            assert batch.positions[here].tolist() == positions
            pieces += [at + i * context for at in starts]
            sizes.append(size)
        assert batch.cu.tolist() == [*pieces, rows * context]
        assert batch.row_bytes == tuple(sizes)
        assert batch.bytes == sum(sizes)


@pytest.mark.parametrize("context", [5, 16, 50])
def test_each_epoch_holds_every_row_once_in_another_order(shards: Shards, context: int) -> None:
    full = (shards.tokens - 1) // context
    loader = Loader(shards, rows=1, context=context, seed=0)
    assert loader.steps_per_epoch == full
    orders = [[int(loader._chosen(e * full + i)[1][0]) for i in range(full)] for e in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(full))
    assert orders[0] != orders[1]
    assert orders[0] != [int(Loader(shards, rows=1, context=context, seed=1)._chosen(i)[1][0]) for i in range(full)]


@pytest.mark.parametrize("world", [2, 3, 4, 12])
def test_ranks_together_see_the_batch_of_one(shards: Shards, world: int) -> None:
    one = Loader(shards, rows=12, context=20, seed=5)
    ranks = [Loader(shards, rows=12, context=20, seed=5, rank=rank, world=world) for rank in range(world)]
    for step in (0, 1, 7, 1000):
        parts = [loader.batch(step) for loader in ranks]
        whole = one.batch(step)
        assert [row for part in parts for row in rows_of(part, 20)] == rows_of(whole, 20)
        assert sum(part.bytes for part in parts) == whole.bytes
        assert all(same(a, b) for a, b in zip(parts, whole.split(world)))


def test_resume_is_the_next_step(shards: Shards) -> None:
    loader = Loader(shards, rows=4, context=33, seed=9)
    seen = [loader.batch(step) for step in range(20)]
    again = Loader(Shards.open(shards.folder), rows=4, context=33, seed=9)
    assert again.fingerprint == loader.fingerprint != Loader(shards, rows=4, context=32, seed=9).fingerprint
    assert all(same(again.batch(step), seen[step]) for step in reversed(range(20)))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_split_keeps_everything(shards: Shards, n: int) -> None:
    whole = Loader(shards, rows=6, context=31, seed=1).batch(2)
    parts = whole.split(n)
    assert len(parts) == n
    for name in ("tokens", "targets", "weights", "positions"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    lengths = torch.cat([part.cu.diff() for part in parts])
    assert torch.equal(lengths, whole.cu.diff())
    assert all(part.cu[0] == 0 and part.cu[-1] == len(part.tokens) for part in parts)
    assert sum(part.bytes for part in parts) == whole.bytes
    assert all(same(a, b) for a, b in zip(parts[0].split(1), parts))


def test_split_has_limits(shards: Shards) -> None:
    batch = Loader(shards, rows=2, context=8, seed=1).batch(0)
    for n in (0, 3):
        with pytest.raises(ValueError, match="2 rows"):
            batch.split(n)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("context", [7, 64, 10_000])
def test_evaluation_scores_each_target_once(tmp_path: Path, style: str, world: int, context: int) -> None:
    shards = made(tmp_path / "s", LONG[:20], style, shard_tokens=100)
    runs = [list(Loader(shards, rows=4, context=context, seed=0, rank=r, world=world).evaluate()) for r in range(world)]
    assert len({len(run) for run in runs}) == 1
    heard = [b for batches in zip(*runs) for b in batches if b.weights.any() or b.bytes]
    targets = torch.cat([b.targets for b in heard])
    assert targets.tolist() == shards.slice(1, shards.tokens).tolist()
    unpaired = 0 if style == "prefix" else shards.documents - 1
    assert sum(float(b.weights.sum()) for b in heard) == shards.tokens - 1 - unpaired
    first = 0 if style in ("prefix", "both") else sum(len(text[0].encode()[:1]) for text in LONG[:20])
    assert sum(b.bytes for b in heard) == shards.text_bytes - first
    for b in heard:
        assert b.cu[-1] == len(b.tokens) == b.row_ends[-1]
        assert torch.equal(b.positions[b.cu[:-1].long()], torch.zeros(len(b.cu) - 1, dtype=torch.int64))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("context", [7, 30])
def test_spread_evaluation_scores_each_target_once_and_takes_each_batch_from_all_over(
    tmp_path: Path, world: int, context: int
) -> None:
    shards = made(tmp_path / "s", LONG[:20], shard_tokens=100)
    loaders = [Loader(shards, rows=4, context=context, seed=0, rank=r, world=world) for r in range(world)]
    runs = [list(loader.evaluate(spread=True)) for loader in loaders]
    assert len({len(run) for run in runs}) == 1
    heard = [b for batches in zip(*runs) for b in batches if b.weights.any() or b.bytes]
    stream = shards.slice(0, shards.tokens).tolist()
    ends = [(b.tokens.tolist(), (0, *b.row_ends)) for b in heard]
    rows = [tokens[i:j] for tokens, at in ends for i, j in pairwise(at)]
    inputs = stream[:-1]
    assert sorted(rows) == sorted(inputs[i : i + context] for i in range(0, len(inputs), context))
    assert sum(float(b.weights.sum()) for b in heard) == len(stream) - 1
    batches = -(-len(rows) // 4)
    first = [stream[i * batches * context :][:context] for i in range(4)]
    assert rows[:4] == first if world == 1 else rows[0] == first[0]


def test_documents_say_what_a_batch_holds(shards: Shards) -> None:
    loader = Loader(shards, rows=4, context=30, seed=2, rank=1, world=2)
    for step in (0, 3, 99):
        batch, spans = loader.batch(step), loader.documents(step)
        assert np.concatenate([span.tokens for span in spans]).tolist() == batch.tokens.tolist()
        assert [len(span.tokens) for span in spans] == batch.cu.diff().tolist()
        assert {span.row for span in spans} == {0, 1}
        for span in spans:
            text = LONG[int(span.source.removeprefix("made#"))]
            wrapped = [Bytes.END, *text.encode()]
            assert span.tokens.tolist() == wrapped[span.start : span.stop]


def test_user_errors_are_one_line(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(TerakoyaError, match="fewer than one row"):
        Loader(shards, rows=1, context=10**6, seed=0).batch(0)
    with pytest.raises(TerakoyaError, match="a multiple of the number of ranks, 3"):
        Loader(shards, rows=4, context=8, seed=0, world=3)
    with pytest.raises(TerakoyaError, match="context"):
        Loader(shards, rows=4, context=0, seed=0)
    with pytest.raises(TerakoyaError, match="no token to learn from"):
        Loader(made(tmp_path / "n", ["a", "b"], "none"), rows=1, context=1, seed=0)


@pytest.mark.parametrize("weights", [[1, 1], [0.7, 0.3], [3, 1, 1], [0.5, 0.25, 0.2, 0.05]])
def test_mix_keeps_its_proportions(tmp_path: Path, weights: list[float]) -> None:
    parts = [made(tmp_path / str(i), [chr(97 + i) * 90] * (i + 1)) for i in range(len(weights))]
    mix = Mix(parts, weights)
    k = np.arange(30_000)
    part, turn = mix.locate(k)
    share = np.array(weights) / sum(weights)
    for i in range(len(weights)):
        assert turn[part == i].tolist() == list(range(int((part == i).sum())))
        assert abs(np.cumsum(part == i) - share[i] * (k + 1)).max() <= 1 + 1e-6 * len(k)
    loader = Loader(mix, rows=8, context=10, seed=0)
    tokens = torch.cat([loader.batch(step).tokens for step in range(50)]).view(-1, 10)
    letters = tokens.max(1).values.where(tokens.max(1).values != Bytes.END, tokens.min(1).values) - 97
    counts = torch.bincount(letters, minlength=len(weights))
    assert (abs(counts.numpy() - share * 400) <= 1).all()
    assert len(list(loader.evaluate())) == sum(-(-(p.tokens - 1) // 80) for p in parts)


def test_mix_refuses_what_cannot_be_mixed(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a"), made(tmp_path / "b", style="suffix")
    for parts, weights, message in [
        ([a, b], [1, 1], "another tokenizer"),
        ([a], [1, 1], "1 sources and 2 weights"),
        ([a, a], [1, 0], "weights above 0"),
        ([a, a], [1, 1e-9], "too small a share"),
    ]:
        with pytest.raises(TerakoyaError, match=message):
            Mix(parts, weights)
