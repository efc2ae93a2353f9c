"""What an answer is worth: exact numbers, forms, lengths, and code that is run apart."""

from __future__ import annotations

import operator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terakoya import sandbox
from terakoya.errors import TerakoyaError
from terakoya.tune.checks import Answer, Brief, Check, Digits, Form, Marked, Number, Tests, Value, code, reward, verdict
from terakoya.tune.methods import Grpo
from terakoya.tune.numbers import last_number, numbers, value
from terakoya.tune.questions import asked, questions
from terakoya.tune.recipe import Tune, assign
from tests.tune.tune_fakes import jsonl, talk

sandboxed = pytest.mark.skipif(sandbox.missing() is not None, reason=f"no sandbox here: {sandbox.missing()}")


def says(check: Check, text: str, expected: str = "", tests: str = "") -> float:
    return verdict(check, Answer(text, 10, 20), expected, tests)


def test_the_last_number_decides() -> None:
    for text in ("12 + 30 = 42", "答えは４２です。", "42.0", "so 42."):
        assert says(Number(), text, "42") == 1.0
    assert says(Number(), "1,042", "1042") == 1.0
    assert says(Number(), "0.1", "0.10") == 1.0
    for text in ("42 or 43", "no idea", "", "42.0000000001", "-42"):
        assert says(Number(), text, "42") == 0.0
    assert numbers("-3.5と7") == ["-3.5", "7"]
    assert numbers("1, 2,3 and 10,000") == ["1", "2", "3", "10000"]
    assert last_number("なし") is None
    assert last_number("9" * 5000) is None  # Python itself reads no number of more than 4,300 digits


def test_what_gsm8k_marks_is_read() -> None:
    assert says(Marked(), "2 + 3 = 5\n#### 5", "5") == 1.0
    assert says(Marked(), "#### 4\nno: #### 1,000 dollars", "1000") == 1.0
    assert says(Marked(), "5", "5") == says(Marked(), "5 ####", "5") == says(Marked(), "#### 6", "5") == 0.0


def test_values_are_exact() -> None:
    assert value("1/3 + 1/6") == Fraction(1, 2) == value("（１／２）") == value("0.5") == value("-(-2)/4")
    assert value("2 * (3 + 4) - 0.1 * 10") == 13
    for wrong in ("", "1 +", "(1", "1)", "2 ** 8", "a", "1/0", "1 2", "9" * 201, "__import__('os')"):
        assert value(wrong) is None
    assert says(Value(), "x = 3/6", "0.5") == says(Value(), "よって\n= 1/2", "0.5") == 1.0
    assert says(Value(), "0.333", "1/3") == says(Value(), "", "1/3") == 0.0


OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@given(st.recursive(
    st.integers(0, 99).map(lambda n: (str(n), Fraction(n))),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: (f"({t[0][0]} {t[1]} {t[2][0]})", OPERATORS[t[1]](t[0][1], t[2][1]))
    ),
    max_leaves=8,
))  # fmt: skip
def test_any_expression_has_pythons_value(case: tuple[str, Fraction]) -> None:
    text, want = case
    assert value(text) == want


def test_digits_count_from_the_last_of_an_answer_as_long() -> None:
    assert says(Digits(), "42", "42") == 1.0
    assert says(Digits(), "41 + 1 = 32", "42") == 0.5
    assert says(Digits(), "142", "42") == says(Digits(), "", "42") == 0.0
    for expected in (" 42", "42.0", "４２", "+42"):
        assert (says(Digits(), "42", expected), says(Digits(), "41", expected)) == (1.0, 0.5)


def test_forms_and_lengths() -> None:
    assert says(Form(), "<think>一\n二</think>\n<answer>3</answer>") == 1.0
    assert says(Form(), "so: <think>a</think><answer>3</answer>") == says(Form(), "<answer>3</answer>") == 0.0
    assert [verdict(Brief(10), Answer("", n, 20), "") for n in (1, 10, 15, 20)] == [0, 0, -0.5, -1.0]
    with pytest.raises(TerakoyaError, match="no regular expression"):
        Form("(")


@sandboxed
def test_code_is_run_apart() -> None:
    good = "Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
    tests = "assert add(2, 3) == 5\nassert add('寺', '子屋') == '寺子屋'"
    assert code(good) == "def add(a, b):\n    return a + b\n"
    assert says(Tests(seconds=2), good, tests=tests) == 1.0
    for bad in (
        "def add(a, b): return a - b",
        "import sys; sys.exit(0)",  # leaving early is no success
        "import os; os._exit(0)",
        "print('passed-0'); raise SystemExit",
        "def add(a, b):\n  while True: pass",
        "```python\nimport os; os.system('touch x')\n```",
        "no code",
        "",
    ):
        assert says(Tests(seconds=1), bad, tests=tests) == 0.0


@sandboxed
def test_humaneval_rows_are_understood(tmp_path: Path) -> None:
    row = {"prompt": "def one():\n", "test": "def check(f):\n    assert f() == 1", "entry_point": "one", "answer": "x"}
    plan = Grpo(checks=(Tests(), Brief(4)))
    made = assign(Tune(), [f"data.source={jsonl(tmp_path / 'q.jsonl', [row])}"])
    (question,) = questions(made.data, plan.checks, 0)
    assert reward(plan.checks, Answer("def one():\n    return 1", 12, 20), "", question.tests) == (0.5, True)
    assert reward(plan.checks, Answer("def one():\n    return 2", 4, 20), "", question.tests) == (0.0, False)


def test_without_a_sandbox_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "missing", lambda: "Landlock of version 3 (Linux 6.2)")
    with pytest.raises(TerakoyaError, match="lacks Landlock"):
        assign(Tune(), ["method=grpo", 'method.checks=[{kind="tests"}]'])
    with pytest.raises(TerakoyaError, match="nothing was run"):
        sandbox.run("print(1)")


def test_checks_must_tell_right_from_wrong() -> None:
    with pytest.raises(TerakoyaError, match=r"method\.checks.*right from wrong"):
        Grpo(checks=(Form(),))
    made = assign(Tune(), ["method=grpo", 'method.checks=[{kind="number"}, {kind="brief", free=9, share=0.5}]'])
    assert made.method == Grpo(checks=(Number(), Brief(9, 0.5)))


def test_rows_of_any_kind_ask_something() -> None:
    user = ("user", "何？")
    for row in (
        {"question": "何？"}, {"prompt": "何？"}, {"prompt": talk("何？")}, {"messages": talk("何？", "え", "次は？")},
        {"instruction": "何？", "output": "x"}, {"chosen": talk("何？", "a"), "rejected": talk("何？", "b")},
        {"conversations": [{"from": "human", "value": "何？"}, {"from": "gpt", "value": "x"}]},
    ):  # fmt: skip
        assert [(m.role, m.content) for m in asked("here", row)] == [user]
    for row in ({"text": "何？"}, {"messages": [{"role": "assistant", "content": "x"}]}):
        with pytest.raises(TerakoyaError, match="here"):
            asked("here", row)
