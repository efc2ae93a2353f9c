"""Rows of every format to samples, and samples to rows: nothing lost, nothing mixed, nothing silent."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Message, render
from terakoya.tune.compare import japanese
from terakoya.tune.formats import Completion, Talk, choices, examples, verdicts
from terakoya.tune.pack import Packer, best_fit, dealt
from terakoya.tune.rows import located, rows
from terakoya.tune.samples import Counts, Sample, encode, fitted
from terakoya.tune.work import parted
from tests.tune.tune_fakes import jsonl, messages, talk, tokenizer

ASK, SAY = "寺子屋とは？ ﾃﾗｺﾔ", "読み書き算盤を学ぶ所です。👩🏽‍🏫"
SAME = Talk("here", messages(ASK, SAY))
FORMATS: dict[str, dict[str, Any]] = {
    "messages": {"messages": talk(ASK, SAY), "id": 3, "lang": "ja"},
    "sharegpt": {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": SAY}]},
    "alpaca": {"instruction": ASK, "input": "", "output": SAY},
    "dolly": {"instruction": ASK, "context": "", "response": SAY, "category": "open_qa"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_chat_format_says_the_same(name: str) -> None:
    for wanted in (name, None):
        (found,) = examples([("here", FORMATS[name])], wanted)  # type: ignore[arg-type]
        assert found == SAME


def test_context_and_system_stand_where_they_belong() -> None:
    (found,) = examples([("x", {"instruction": "訳せ", "input": "犬", "output": "dog", "system": "短く"})], None)
    assert isinstance(found, Talk)
    assert found.messages == (Message("system", "短く"), Message("user", "訳せ\n\n犬"), Message("assistant", "dog"))


def test_prompt_and_completion_learn_the_completion_alone() -> None:
    tok = tokenizer()
    (plain,) = examples([("x", {"prompt": "犬は", "completion": "dog"})], None)
    assert plain == Completion("x", "犬は", "dog")
    sample = encode(tok, plain)
    learnt = [i for i, w in zip(sample.ids, sample.weights) if w]
    assert tok.decode(learnt).startswith("dog")
    assert tok.decode([i for i, w in zip(sample.ids, sample.weights) if not w]).endswith("犬は")
    history = talk("a", "b", "c")
    (chat,) = examples([("x", {"prompt": history, "completion": talk("", "d")[1:]})], None)
    assert isinstance(chat, Talk)
    assert chat.first == 3
    sample = encode(tok, chat)
    whole = encode(tok, Talk("x", chat.messages))
    assert sample.ids == whole.ids
    assert sum(sample.weights) < sum(whole.weights)
    assert tok.decode([i for i, w in zip(sample.ids, sample.weights) if w]) == "d"


def test_an_answer_of_weight_nothing_is_read_and_not_learnt() -> None:
    tok, said = tokenizer(), talk(ASK, "誤り", "もう一度", SAY)
    (found,) = examples(
        [("x", {"messages": [said[0], said[1] | {"weight": 0}, said[2], said[3] | {"weight": 1}]})], None
    )
    assert isinstance(found, Talk)
    mine, whole = encode(tok, found), encode(tok, Talk("x", messages(ASK, "誤り", "もう一度", SAY)))
    assert mine.ids == whole.ids
    end = len(render(tok, messages(ASK, "誤り")).ids)
    assert any(whole.weights[:end])
    assert mine.weights == ((0.0,) * end + whole.weights[end:])
    for bad in (said[0] | {"weight": 0}, said[1] | {"weight": 0.5}):
        with pytest.raises(TerakoyaError, match=r"x: messages\[0\]: weight: .* 0 or 1"):
            list(examples([("x", {"messages": [bad]})], None))
    with pytest.raises(TerakoyaError, match="tools: cannot be taught"):
        list(examples([("x", {"messages": said, "tools": [{"type": "function"}]})], None))


def test_files_and_folders(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    made = [FORMATS["messages"] | {"id": i} for i in range(3)]
    jsonl(tmp_path / "a.jsonl", made)
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress((tmp_path / "a.jsonl").read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made), tmp_path / "c.parquet")
    (tmp_path / "note.md").write_text("no rows", encoding="utf-8")
    found = list(examples(rows(tmp_path), None))
    assert [x.messages for x in found if isinstance(x, Talk)] == [SAME.messages] * 9  # type: ignore[union-attr]
    assert found[4].place == f"{tmp_path / 'b.jsonl.zst'}:2"
    for wrong, match in ((tmp_path / "none", "does not exist"), (tmp_path / "note.md", "kind of file")):
        with pytest.raises(TerakoyaError, match=match):
            list(rows(wrong))


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"question": "?", "reply": "!"}, "here: .*no format known"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\].content: .*must be text"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "tool_calls"),
        ({"messages": talk("only a question")}, "here: can never teach anything"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "here: message 0 role"),
        ({"conversations": [{"from": "human"}]}, "value: .*must be text"),
        ({"instruction": "x", "output": None}, "output: .*must be text"),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], match: str) -> None:
    with pytest.raises(TerakoyaError, match=match):
        [encode(tokenizer(), found) for found in examples([("here", row)], None)]


def test_rows_come_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[tuple[str, str, list[str]]] = []

    def download(name: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((name, repo_type, allow_patterns))
        if "none" in name:
            raise OSError("no such place\nmore")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    (tmp_path / "a").mkdir()
    jsonl(tmp_path / "a" / "x.jsonl", [{"text": "寺子屋"}])
    for source, patterns in (("", ["*.jsonl", "*.jsonl.zst", "*.parquet"]), ("/a/x.jsonl", None), ("/a", ["a", "a/*"])):
        found = list(rows(located(f"hf://datasets/who/what{source}")))
        assert [r["text"] for _, r in found] == ["寺子屋"]
        assert asked[-1][:2] == ("who/what", "dataset")
        assert patterns is None or asked[-1][2] == patterns
    assert located(str(tmp_path)) == tmp_path
    for wrong in ("hf://models/a/b", "hf://datasets/a", "hf://datasets/a/b/../c"):
        with pytest.raises(TerakoyaError, match=r"data\.source"):
            located(wrong)
    with pytest.raises(TerakoyaError, match=r"no such place$"):
        located("hf://datasets/none/what")


def test_a_later_row_of_another_format_is_an_error() -> None:
    with pytest.raises(TerakoyaError, match="second: messages"):
        list(examples([("first", FORMATS["messages"]), ("second", FORMATS["alpaca"])], None))


def test_preferences_in_three_spellings() -> None:
    want = (messages(ASK), "良い", "悪い")
    for row in (
        {"prompt": ASK, "chosen": "良い", "rejected": "悪い"},
        {"prompt": talk(ASK), "chosen": talk("", "良い")[1:], "rejected": talk("", "悪い")[1:]},
        {"chosen": talk(ASK, "良い"), "rejected": talk(ASK, "悪い")},
    ):
        (found,) = choices([("x", row)])
        assert (found.prompt, found.chosen, found.rejected) == want
    both = list(verdicts([("x", {"prompt": ASK, "chosen": "良い", "rejected": "悪い"})]))
    assert [(v.answer, v.liked) for v in both] == [("良い", True), ("悪い", False)]
    with pytest.raises(TerakoyaError, match="nothing can be learnt"):
        list(choices([("x", {"prompt": ASK, "chosen": "同", "rejected": "同"})]))
    with pytest.raises(TerakoyaError, match="same up to"):
        list(choices([("x", {"chosen": talk("a", "b"), "rejected": talk("c", "d")})]))


def test_what_stands_before_an_answer_is_the_prompt_or_an_error() -> None:
    (found,) = choices([("x", {"prompt": ASK, "chosen": talk(ASK, "良い"), "rejected": "悪い"})])
    assert (found.prompt, found.chosen, found.rejected) == (messages(ASK), "良い", "悪い")
    for row in (
        {"prompt": ASK, "chosen": talk("別の問い", "良い"), "rejected": "悪い"},
        {"prompt": ASK, "chosen": "良い", "rejected": talk(ASK, "え", "もう一度", "悪い")},
        {"prompt": ASK, "completion": talk("別の問い", "良い"), "label": True},
    ):
        with pytest.raises(TerakoyaError, match=r"^x: (chosen|rejected|completion): must be the answer alone"):
            list(verdicts([("x", row)]))


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}\n{"text": "a\\ud83d"}\n', encoding="utf-8")
    found = rows(path)
    assert next(found)[1] == {"text": "😀"}
    with pytest.raises(TerakoyaError, match=r"a\.jsonl:2: holds half of a surrogate pair"):
        next(found)


def long_sample(answers: int) -> Sample:
    return Sample("long", tuple(range(100)), tuple(0.0 if i < 100 - answers else 1.0 for i in range(100)))


def test_overlong_as_asked_and_counted() -> None:
    short = Sample("short", (1, 2, 3), (0.0, 1.0, 1.0))
    both = [short, long_sample(70)]
    counts = Counts()
    cut = fitted(both, 20, "split", counts)
    assert max(s.length for s in cut) <= 20
    assert sum(sum(s.weights[1:]) for s in cut) == 2 + 70
    assert (counts.split, counts.pieces, counts.silent) == (1, 5, 1)
    counts = Counts()
    assert fitted(both, 20, "drop", counts) == [short]
    assert (counts.dropped, counts.places) == (1, ["long"])
    assert "long" in counts.said()
    counts = Counts()
    kept = fitted([short, long_sample(95)], 20, "truncate", counts)
    assert [s.length for s in kept] == [2, 20]
    assert counts.truncated == 1
    with pytest.raises(TerakoyaError, match="long: can never teach anything: its answer begins after"):
        fitted(both, 20, "truncate", Counts())
    with pytest.raises(TerakoyaError, match="long: has 99 tokens"):
        fitted(both, 20, "error", Counts())
    with pytest.raises(TerakoyaError, match="no example is left"):
        fitted([long_sample(9)], 20, "drop", Counts())


def test_best_fit_is_a_partition_that_fits() -> None:
    rng = random.Random(0)
    for _ in range(50):
        room = rng.randint(1, 60)
        lengths = [rng.randint(1, room) for _ in range(rng.randint(1, 80))]
        found = best_fit(lengths, room)
        assert sorted(i for row in found for i in row) == list(range(len(lengths)))
        assert all(sum(lengths[i] for i in row) <= room for row in found)
        assert len(found) <= 1.25 * sum(lengths) / room + 2  # 11/9 of the best, and a bit


def some_samples(count: int = 40, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    out = []
    for i in range(count):
        n = rng.randint(2, 30)
        out.append(
            Sample(str(i), tuple(rng.randrange(3, 200) for _ in range(n)), (0.0,) * (n // 2) + (1.0,) * (n - n // 2))
        )
    return out


def test_batches_are_a_function_of_seed_and_step() -> None:
    samples = some_samples()
    a = Packer(samples, tokenizer(), rows=3, context=40, seed=7)
    b = Packer(samples, tokenizer(), rows=3, context=40, seed=7)
    for step in (5, 0, 17):
        assert torch.equal(a.batch(step).tokens, b.batch(step).tokens)
    other = Packer(samples, tokenizer(), rows=3, context=40, seed=8)
    assert any(not torch.equal(a.batch(s).tokens, other.batch(s).tokens) for s in range(3))
    assert a.fingerprint == b.fingerprint != other.fingerprint
    rows_ = len(a.plan)
    seen = Counter()
    for step in range(rows_):  # three epochs
        batch = a.batch(step)
        seen.update(tuple(batch.tokens[x:y].tolist()) for x, y in zip(batch.cu, batch.cu[1:]))
        assert torch.equal(batch.positions, torch.cat([torch.arange(n) for n in batch.cu.diff().tolist()]))
        assert batch.weight > 0
    assert set(seen.values()) == {3}
    assert set(seen) == {s.ids[:-1] for s in samples}
    whole = list(a.evaluate())
    assert sum(b.weight for b in whole) == sum(sum(s.weights[1:]) for s in samples)


def test_targets_weights_and_bytes_are_those_of_the_samples() -> None:
    tok = tokenizer()
    sample = encode(tok, SAME)
    packer = Packer([sample], tok, rows=1, context=200, seed=0)
    batch = packer.batch(0)
    assert batch.tokens.tolist() == list(sample.ids[:-1])
    assert batch.targets.tolist() == list(sample.ids[1:])
    assert batch.bytes == len(SAY.encode())
    assert render(tok, SAME.messages).ids[: len(sample.ids)] == list(sample.ids)


def test_a_prompt_is_on_one_side_only() -> None:
    items = [f"p{i % 10}" for i in range(50)]
    learn, kept = parted(items, str, 0.2, seed=1)
    assert not set(learn) & set(kept)
    assert (len(set(kept)), len(learn) + len(kept)) == (2, 50)
    assert parted(items, str, 0.2, seed=1) == (learn, kept)
    with pytest.raises(TerakoyaError, match="at least 2"):
        parted(["a", "a"], str, 0.5, seed=0)


def test_every_item_is_dealt_once_an_epoch() -> None:
    seen = [i for step in range(14) for i in dealt(7, 3, 5, step)]
    assert all(sorted(seen[e * 7 : e * 7 + 7]) == list(range(7)) for e in range(6))
    assert seen[:7] != seen[7:14]


def test_share_of_japanese() -> None:
    assert japanese("寺子屋です。 123") == 1.0
    assert japanese("ﾃﾗｺﾔ abcd") == 0.5
    assert japanese("👩🏽‍🏫 42!") == 0.0
