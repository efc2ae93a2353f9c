"""Every verb as its user types it, on a tiny model that learns a little Japanese and English."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from terakoya import config
from terakoya.data import Loader, Shards
from terakoya.models import open_model
from terakoya.tokenizer import Tokenizer
from terakoya.train.recipe import Recipe
from terakoya.train.run import read_lines
from tests.cli.conftest import SMALL, Terakoya

PROMPT = "寺子屋は、"


def lines(path: Path) -> list[dict]:
    return list(read_lines(path))


# tokenizer, data


@pytest.mark.parametrize("kind", ["bpe", "unigram", "bytes", "chars"])
def test_tokenizer_train_show_and_report(kind: str, corpus: Path, tmp_path: Path, terakoya: Terakoya) -> None:
    said = terakoya("tokenizer", "train", corpus, "made", "--type", kind, "--vocab", 400, "--sample", 20000)
    assert said.code == 0, said.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made"]
    made = Tokenizer.load(tmp_path / "made")
    text = "寺子屋 ｶﾅ 👩‍👩‍👧 school"
    ids = made.encode(text)
    said = terakoya("tokenizer", "show", "made", text)
    assert said.code == 0, said.err
    assert f"{len(ids)} tokens" in said.out
    assert all(str(i) in said.out for i in ids)
    said = terakoya("tokenizer", "report", "made/tokenizer.json")
    assert said.code == 0, said.err
    assert f"{made.vocab_size} pieces" in said.out
    assert [row.split()[0] for row in said.out.splitlines()[2:5]] == ["ja", "en", "code"]


def test_data_build_is_what_the_library_builds(corpus: Path, finished: Path, terakoya: Terakoya) -> None:
    said = terakoya("data", "build", corpus, "shards", "--tokenizer", finished)
    assert said.code == 0, said.err
    shards = Shards.open("shards", Tokenizer.load(finished / "tokenizer").hash(), verify=True)
    assert shards.documents == 6
    assert f"{shards.documents} documents" in said.out
    assert f"{shards.tokens:,} tokens" in said.out
    assert shards.text_bytes == sum(p.stat().st_size for p in corpus.iterdir())


def test_data_show_prints_what_the_step_saw(finished: Path, terakoya: Terakoya) -> None:
    said = terakoya("data", "show", finished, "--step", 2, "--rows", 0)
    assert said.code == 0, said.err
    assert [f"── row {i}" in said.out for i in range(5)] == [True] * 4 + [False]
    assert terakoya("data", "show", finished, "--step", 2, "--rows", 0) == said
    assert terakoya("data", "show", finished, "--step", 3, "--rows", 0).out != said.out
    few = terakoya("data", "show", finished, "--step", 2, "--rows", 1)
    assert said.out.startswith(few.out.partition("… ")[0])
    assert "… 3 more rows" in few.out


# train, show


def test_train_leaves_a_whole_run(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert names == {
        "recipe.toml", "resolved.toml", "spec.toml", "environment.json", "tokenizer", "data", "steps",
        "metrics.jsonl", "timing.jsonl",
    }  # fmt: skip
    resolved = config.load_file(Recipe, finished / "resolved.toml")
    assert not isinstance(resolved.model, str)
    assert (resolved.model.dim, resolved.model.depth, resolved.model.context) == (32, 2, 64)
    rows = lines(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert 0 < rows[-1]["heldout_bits_per_byte"] < 8


def test_train_again_from_a_finished_run_changes_nothing(run: Path, terakoya: Terakoya) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    said = terakoya("train", run)
    assert said.code == 0, said.err
    assert "step 5" in said.out
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_an_unfinished_run_resumes_to_the_same_end(
    recipe: Path, finished: Path, terakoya: Terakoya, monkeypatch: pytest.MonkeyPatch
) -> None:
    from terakoya.train.loop import Trainer

    whole = Trainer.save

    def last_words(self: Trainer, done: int) -> Path:
        path = whole(self, done)
        if done == 4:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", last_words)
        assert terakoya("train", recipe, *SMALL, "--run", "half").code == 130
    half = Path("half")
    assert len(lines(half / "metrics.jsonl")) == 4
    said = terakoya("train", half)
    assert said.code == 0, said.err
    assert "resumed at step 4" in said.out
    assert (half / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    one, other = (next((f / "steps").glob("*5")) for f in (half, finished))
    assert (one / "manifest.json").read_bytes() == (other / "manifest.json").read_bytes()


def test_sigterm_saves_and_tells_how_to_go_on(
    recipe: Path, terakoya: Terakoya, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Loader.batch

    def third(self: Loader, step: int):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, step)

    monkeypatch.setattr(Loader, "batch", third)
    said = terakoya("train", recipe, *SMALL, "--run", "stopped")
    assert said.code == 0, said.err
    assert "continue with: terakoya train stopped" in said.out
    assert [p.name for p in Path("stopped/steps").iterdir() if p.name.endswith("3")]


def test_show_prints_a_recipe_that_is_one(recipe: Path, finished: Path, terakoya: Terakoya) -> None:
    said = terakoya("show", recipe, *SMALL)
    assert said.code == 0, said.err
    found = config.load(Recipe, said.out)
    assert not isinstance(found.model, str)
    assert found.model.dim == 32
    Path("again.toml").write_text(said.out, encoding="utf-8")
    assert terakoya("show", "again.toml").out == said.out
    assert terakoya("show", finished).out.strip() == (finished / "resolved.toml").read_text(encoding="utf-8").strip()


# generate, chat, eval


def test_generate_is_a_function_of_the_seed(finished: Path, terakoya: Terakoya) -> None:
    words = ("generate", finished, PROMPT, "--max-tokens", 30, "--temperature", 1)
    first, again, other = (terakoya(*words, "--seed", seed) for seed in (7, 7, 8))
    assert first.code == 0, first.err
    assert first == again
    assert first.out != other.out
    cold = [terakoya("generate", finished, PROMPT, "--max-tokens", 30, "--temperature", 0) for _ in range(2)]
    assert cold[0] == cold[1]


def test_generate_reads_standard_input(finished: Path, terakoya: Terakoya) -> None:
    flags = ("--max-tokens", 20, "--seed", 7)
    typed = terakoya("generate", finished, PROMPT, *flags)
    piped = terakoya("generate", finished, "-", *flags, stdin=PROMPT.encode())
    assert piped == typed
    assert typed.out.count("\n") >= 1


def test_generate_ends_before_a_stop_text(finished: Path, terakoya: Terakoya) -> None:
    flags = ("--max-tokens", 40, "--seed", 7, "--temperature", 1)
    whole = terakoya("generate", finished, "a", *flags).out.rstrip("\n")
    cut = whole[5:6]
    said = terakoya("generate", finished, "a", *flags, "--stop", cut)
    assert said.out == whole[: whole.index(cut)] + "\n"


def test_a_reader_that_leaves_early_is_no_error(finished: Path) -> None:
    words = [sys.executable, "-m", "terakoya", "generate", str(finished), "a", "--max-tokens", "60", "--seed", "1"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert (child.wait(60), err.count(b"\n")) == (141, 1)
    assert err.startswith(b"device "), "the line that says who computes, and nothing else"


def test_chat_answers_what_is_asked(finished: Path, terakoya: Terakoya) -> None:
    words = ("chat", finished, "--ask", "寺子屋とは？", "--ask", "[b]why[/b]?", "--max-tokens", 8, "--seed", 1)
    said = terakoya(*words)
    assert said.code == 0, said.err
    assert "> 寺子屋とは？" in said.out
    assert "> [b]why[/b]?" in said.out
    assert said.out.count("tokens/s") == 2


def test_chat_reads_lines_until_an_empty_one(finished: Path, terakoya: Terakoya) -> None:
    said = terakoya("chat", finished, "--max-tokens", 4, stdin="こんにちは\n/reset\nhello\n\nnever\n".encode())
    assert said.code == 0, said.err
    assert said.out.count("tokens/s") == 2
    assert terakoya("chat", finished, "--max-tokens", 4, stdin=b"").code == 0


def test_eval_of_a_run_is_its_last_score(finished: Path, terakoya: Terakoya) -> None:
    said = terakoya("eval", finished)
    assert said.code == 0, said.err
    cells = [c.strip() for c in said.out.splitlines()[-2].strip("│").split("│")]
    heldout = Shards.open(finished / "data" / "heldout")
    assert cells[1] == f"{heldout.text_bytes:,}"
    # The loop scores rows of the training context; eval lets each token look back over half a window at least.
    assert float(cells[5]) == pytest.approx(lines(finished / "metrics.jsonl")[-1]["heldout_bits_per_byte"], rel=0.02)


def test_eval_of_a_text_up_to_a_limit(finished: Path, corpus: Path, terakoya: Terakoya) -> None:
    said = terakoya("eval", finished, "--text", corpus / "0.txt", "--limit", 1000, "--window", 32)
    assert said.code == 0, said.err
    assert "scored the first 1,000 bytes" in said.out


# convert, lineage, quickstart


def test_convert_gives_a_folder_that_transformers_opens(finished: Path, exported: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = open_model(str(finished))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    text = "寺子屋 ｶﾅ 👩‍👩‍👧 school"
    assert ours.tokenizer is not None
    ids = ours.tokenizer.encode(text)
    assert tokenizer(text, add_special_tokens=False).input_ids == ids
    from terakoya.model.context import Packed

    with torch.inference_mode():
        mine = ours.model.head(ours.model(torch.tensor(ids), Packed([len(ids)], torch.device("cpu"))))
        torch.testing.assert_close(mine, theirs(torch.tensor([ids])).logits[0], rtol=0, atol=1e-5)


def test_convert_to_half_and_back_again(exported: Path, terakoya: Terakoya) -> None:
    assert terakoya("convert", exported, "half", "--dtype", "bfloat16").code == 0
    assert terakoya("convert", "half", "again", "--dtype", "bfloat16").code == 0
    assert Path("half/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()
    assert json.loads(Path("half/config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"


@pytest.mark.skipif(
    importlib.util.find_spec("terakoya.zoo.draw") is None, reason="the drawing of the lineage is absent"
)
def test_lineage(terakoya: Terakoya) -> None:
    assert "LLaMA 2" in terakoya("lineage").out
    assert "7b" in terakoya("lineage", "llama2").out
    assert terakoya("lineage", "llama2", "--lang", "ja").out != terakoya("lineage", "llama2", "--lang", "en").out
    assert terakoya("lineage", "--mermaid").out.lstrip().startswith(("flowchart", "graph", "---"))
    said = terakoya("lineage", "--html", "tree.html")
    assert said.code == 0, said.err
    assert "<html" in Path("tree.html").read_text(encoding="utf-8")


def test_quickstart_without_the_talk(corpus: Path, terakoya: Terakoya) -> None:
    tiny = ("rows.count=4", "rows.context=64", "tokenizer.size=300", "model=llama2/nano", *SMALL)
    words = ("quickstart", "--corpus", corpus, "--run", "quick", "--no-chat", "budget.steps=5", *tiny)
    said = terakoya(*words)
    assert said.code == 0, said.err
    assert "│ this model" in said.out
    report = json.loads(Path("quick/report.json").read_text(encoding="utf-8"))
    assert set(report["baselines"]) == {"uniform bytes", "unigram tokens", "zlib -9", "lzma -9e"}
    assert report["heldout_bits_per_byte"] == lines(Path("quick/metrics.jsonl"))[-1]["heldout_bits_per_byte"]
    assert "(from nothing)" in Path("quick/samples.md").read_text(encoding="utf-8")
    if importlib.util.find_spec("matplotlib"):
        assert Path("quick/loss.png").read_bytes().startswith(b"\x89PNG")
    assert terakoya(*words).code == 0  # a second time: nothing is learnt anew
    assert terakoya("generate", "quick", PROMPT, "--max-tokens", 3).code == 0
