"""Made examples: what is asked, what is kept, and who wrote it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from terakoya.cli.main import main
from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Message
from terakoya.tune.sieve import Limits, Sieve, in_language, minhash
from terakoya.tune.synth import Plan, pairs, rows
from terakoya.tune.writers import Endpoint, Own, Prompt, Written
from terakoya.zoo.convert import Loaded
from tests.tune.tune_fakes import jsonl, messages, small, talk, tokenizer

SEEDS = [messages(t) for t in ("俳句を一つ詠んでください。", "江戸の町を説明してください。", "そろばんの使い方は？")]
TASKS = [
    "寺子屋の一日を作文にしてください。",
    "俳句を一つ 詠んでください。！",
    "Tell me a story about cats.",
    "算盤で足し算をする手順を教えて。",
]


class Fake:
    """Lists tasks when asked for some, answers otherwise."""

    name = "fake"

    def __init__(self) -> None:
        self.asked: list[Prompt] = []

    def write(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, tokens: int, temperature: float
    ) -> list[Written]:
        self.asked += prompts
        listed = "\n".join(f"{i}. {t}" for i, t in enumerate(TASKS, 1))
        new = "新しい指示" in prompts[0][0].content
        return [Written(listed if new else f"{p[-1].content}への答えです。", True) for p in prompts]


def test_new_tasks_are_kept_where_they_are_new() -> None:
    writer, sieve = Fake(), Sieve(Limits(language="ja"))
    made = list(rows(Plan(count=9, rounds=2), writer, SEEDS, sieve))
    assert [r["messages"][0]["content"] for r in made] == [TASKS[0], TASKS[3]]  # not the copy, not the English one
    assert sieve.counts["kept"] == 2
    assert sieve.counts["a copy"] == 2 + 2  # of a seed, and in the second round of what was kept
    assert sieve.counts["another language"] == 2
    first = made[0]
    assert first["messages"][1] == {"role": "assistant", "content": f"{TASKS[0]}への答えです。"}
    assert first["made"]["by"] == "fake"
    assert first["made"]["way"] == "instruct"
    assert len(first["made"]["from"]) == 3
    assert len({r["id"] for r in made}) == 2
    shown = writer.asked[0][0].content
    assert all(p[-1].content in shown for p in SEEDS)


def test_explanations_keep_the_question_and_drop_the_order() -> None:
    sieve = Sieve(Limits(language="ja"))
    made = list(rows(Plan(way="explain", count=2, at_once=2), Fake(), SEEDS, sieve))
    assert [r["messages"][0]["content"] for r in made] == [p[-1].content for p in SEEDS[:2]]
    assert all(m["role"] != "system" for r in made for m in r["messages"])
    assert len(list(rows(Plan(way="explain", count=9, at_once=2), Fake(), SEEDS, Sieve(Limits())))) == 3


def test_benchmarks_lengths_and_ends() -> None:
    bench = "ある町に猫が三匹と犬が二匹います。動物は全部で何匹いますか。"
    sieve = Sieve(Limits(language="ja", longest=60), [bench])
    assert sieve.fault(bench + "答えて。", "五匹です。") == "in a benchmark"
    assert sieve.fault("あ", "はい、そうです。") == "too short or too long"
    assert sieve.fault("長い話をして。", "長" * 61) == "too short or too long"
    assert sieve.fault("猫の数え方を教えてください。", "一匹、二匹と数えます。") == ""
    assert in_language("123 !?", "ja") == 1.0
    assert in_language("abcあ", "en") == 0.75
    with pytest.raises(TerakoyaError, match=r"limits\.alike"):
        Limits(alike=0)


def test_signatures_estimate_likeness() -> None:
    a = "寺子屋では読み書きと算盤を教えていた。子どもたちは朝早くから通った。"
    for changed, low, high in (
        (a, 1.0, 1.0),
        (a.replace("朝早く", "夕方"), 0.5, 0.95),
        ("全く別の話で、重なる所がない。", 0.0, 0.1),
    ):
        likeness = float((minhash(a) == minhash(changed)).mean())
        assert low <= likeness <= high


def test_a_model_of_ours_writes_the_same_with_the_same_seed() -> None:
    writer = Own("small", Loaded(small(), tokenizer(), "smollm2"))
    one, two, other = (writer.write(SEEDS[:2], seeds, tokens=5, temperature=1.0) for seeds in ([1, 2], [1, 2], [3, 4]))
    assert one == two
    assert one != other
    long = (Message("user", "長" * 400),)
    assert writer.write([long], [0], tokens=5, temperature=1.0) == [Written("", False)]


class Server(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that answers with what it was asked."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).seen.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
        status = 429 if body["model"] == "busy" else 200
        reply = {"choices": [{"message": {"content": "答え👩🏽‍🏫です。"}, "finish_reason": "stop"}]}
        data = b"nonsense" if body["model"] == "odd" else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_is_asked_as_openai_has_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "himitsu")
    (answer,) = Endpoint(url, "m", "SOME_KEY").write(SEEDS[:1], [7], tokens=9, temperature=0.5)
    assert answer == Written("答え👩🏽‍🏫です。", True)
    seen = Server.seen[-1]
    assert (seen["path"], seen["key"], seen["max_tokens"], seen["seed"]) == (
        "/v1/chat/completions",
        "Bearer himitsu",
        9,
        7,
    )
    assert seen["messages"] == [{"role": "user", "content": SEEDS[0][0].content}]
    for name, word in (("busy", "status 429"), ("odd", "something else")):
        with pytest.raises(TerakoyaError, match=word):
            Endpoint(url, name).write(SEEDS[:1], [0], tokens=9, temperature=0.5)
    with pytest.raises(TerakoyaError, match="does not answer"):
        Endpoint("http://127.0.0.1:1/v1", "m").write(SEEDS[:1], [0], tokens=9, temperature=0.5)
    for wrong in ("ftp://x/v1", "http://", "http://user:key@host/v1"):
        with pytest.raises(TerakoyaError, match="endpoint"):
            Endpoint(wrong, "m")
    with pytest.raises(TerakoyaError, match="no variable"):
        Endpoint(url, "m", "NO_SUCH_KEY")


def test_the_verb_writes_a_file(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = jsonl(tmp_path / "s.jsonl", [{"messages": talk(p[-1].content, "x")} for p in SEEDS])
    out = tmp_path / "out.jsonl"
    main(["data", "synth", url, str(seeds), str(out), "--way", "explain", "--count", "2"])
    made = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(made) == 2
    assert made[0]["made"]["by"] == f"default at {url}"
    assert "2 rows" in capsys.readouterr().out
    main(["data", "synth", url, str(seeds), str(tmp_path / "pairs.jsonl"), "--way", "prefer", "--count", "2"])
    made = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["chosen"], r["rejected"]) for r in made] == [("x", "答え👩🏽‍🏫です。")] * 2
    for more in ([], ["--benchmark", str(seeds)]):
        target = out if not more else tmp_path / "none.jsonl"
        with pytest.raises(SystemExit):
            main(["data", "synth", url, str(seeds), str(target), "--way", "explain", *more])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "pairs.jsonl", "s.jsonl"]


def test_a_given_answer_is_put_before_the_models_own() -> None:
    talks = [messages(p[-1].content, f"{i}つ目の答え。") for i, p in enumerate(SEEDS)]
    talks += [messages("問いだけ。"), messages(SEEDS[0][-1].content, f"{SEEDS[0][-1].content}への答えです。")]
    sieve = Sieve(Limits(language="ja"))
    made = list(pairs(Plan(way="prefer", count=2, at_once=5), Fake(), talks, sieve))
    assert [(r["prompt"], r["chosen"], r["rejected"]) for r in made] == [
        (talk(p[-1].content), f"{i}つ目の答え。", f"{p[-1].content}への答えです。") for i, p in enumerate(SEEDS[:2])
    ]
    assert made[0]["made"]["way"] == "prefer"
    sieve = Sieve(Limits(language="ja"))
    assert len(list(pairs(Plan(way="prefer", count=9, at_once=2), Fake(), talks, sieve))) == 3
    assert (sieve.counts["without an answer to prefer"], sieve.counts["the same"]) == (1, 1)
    assert len({r["id"] for r in made}) == 2
