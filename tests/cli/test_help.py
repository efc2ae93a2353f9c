"""Help is quick, in two languages, and as it was; a wrong word gets one line and the right one.

After a change of the command line: TERAKOYA_WRITE=1 python -m pytest tests/cli/test_help.py
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from terakoya.cli.main import VERBS, parser
from tests.cli.conftest import Terakoya

UTF8 = {"PYTHONIOENCODING": "utf-8"}
SNAPSHOT = Path(__file__).with_name("help.txt")
JAPANESE = re.compile("[ぁ-んァ-ン一-龯]")

# Heavy libraries, and those of no use before a verb is known.
PROBE = """
import sys
from terakoya.cli.main import VERBS, main
for words in ([], ["--version"], *([v, "--help"] for v in VERBS), ["tokenizer", "train", "--help"]):
    try:
        main(words or ["--help"])
    except SystemExit as end:
        assert not end.code, words
heavy = {"torch", "numpy", "tokenizers", "safetensors", "rich", "transformers", "matplotlib", "huggingface_hub"}
print("heavy:", sorted(heavy & sys.modules.keys()))
"""


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every parser: the whole, the verbs, their actions."""

    def below(p: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
        yield p.prog, p
        for action in p._actions:
            if isinstance(action, argparse._SubParsersAction):
                for inner in action.choices.values():
                    yield from below(inner)

    yield from below(parser())


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, encoding="utf-8", env=os.environ | UTF8)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_help_where_the_terminal_knows_ascii_only() -> None:
    words = [sys.executable, "-m", "terakoya", "--help"]
    done = subprocess.run(words, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert b"Continue a text." in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_says_what_it_does_in_two_languages(verb: str) -> None:
    about = VERBS[verb][0]
    english, _, japanese = about.partition(". ")
    assert english.isascii()
    assert english[0].isupper()
    assert JAPANESE.search(japanese)
    assert japanese.endswith("。")
    assert "\n" not in about


def test_every_action_and_argument_is_explained() -> None:
    for prog, p in commands():
        for action in p._actions:
            if isinstance(action, argparse._SubParsersAction):
                assert all(JAPANESE.search(c.help or "") for c in action._choices_actions), prog
            else:
                assert action.help, (prog, action.dest)


def test_help_is_as_it_was() -> None:
    text = "".join(f"# {prog}\n{p.format_help()}\n" for prog, p in commands())
    if os.environ.get("TERAKOYA_WRITE"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    # Python's versions break lines in different places; the words are what counts.
    assert text.split() == SNAPSHOT.read_text(encoding="utf-8").split()


def test_no_verb_shows_the_help(terakoya: Terakoya) -> None:
    said = terakoya()
    assert said.code == 0
    assert said.out == parser().format_help()


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["trian"], "'train'"),
        (["generat", "x", "y"], "'generate'"),
        (["tokenizer", "repot", "x"], "'report'"),
        (["data", "bild"], "'build'"),
        (["train", "smol", "--rnu", "x"], "'--run'"),
        (["generate", "x", "y", "--temprature", "1"], "'--temperature'"),
        (["convert", "x", "y", "--dtype", "float61"], "'float16'"),
    ],
)
def test_a_wrong_word_gets_one_line_with_the_nearest(words: list[str], nearest: str, terakoya: Terakoya) -> None:
    said = terakoya(*words)
    assert said.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert f"did you mean {nearest}?" in said.err
    assert "--help" in said.err


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["train"],
        ["generate", "x"],
        ["tokenizer"],
        ["generate", "x", "y", "--temperature", "warm"],
        ["generate", "x", "y", "--top-k", "1.5"],
        ["lineage", "--lang", "fr"],
        ["chat", "x", "path=value"],
        ["train", "smol", "--run"],
    ],
)
def test_wrong_words_without_a_near_one_get_one_line_too(words: list[str], terakoya: Terakoya) -> None:
    said = terakoya(*words)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "did you mean" not in said.err


def test_changes_may_stand_before_and_after_options() -> None:
    from terakoya.cli.main import _parsed

    args = _parsed(parser(), ["train", "smol", "seed=1", "--run", "x", "clip=2"])
    assert (args.overrides, args.run) == (["seed=1", "clip=2"], "x")
    args = _parsed(parser(), ["quickstart", "--no-chat", "seed=1", "--run", "x", "clip=2"])
    assert (args.overrides, args.run, args.no_chat) == (["seed=1", "clip=2"], "x", True)
