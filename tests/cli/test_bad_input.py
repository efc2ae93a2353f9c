"""What a user can get wrong: exit code 2, one line that names the place and a way out, and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from terakoya.cli.main import main
from terakoya.models import open_model
from terakoya.quant.blocks import BLOCKS
from terakoya.tokenizer import train
from terakoya.zoo.gguf_write import write_gguf
from tests.cli.conftest import SMALL, Said, Terakoya, say

Tree = dict[str, int]


def tree(folder: Path) -> Tree:
    """Every path below a folder with its size."""
    return {str(p.relative_to(folder)): p.stat().st_size if p.is_file() else -1 for p in folder.rglob("*")}


def refused(*words: object, stdin: bytes = b"", leaves: Tree | None = None) -> str:
    """Run a command that must fail as a user's mistake does; return its line. `leaves`: the tree it must leave."""
    before = tree(Path()) if leaves is None else leaves
    said: Said = say(*words, stdin=stdin)
    assert said.code == 2, said
    line = re.sub(r"\Adevice [^\n]*\n", "", said.err)  # what runs where may be said first, once a model is open
    assert line.count("\n") == 1, said.err
    assert line.startswith("terakoya"), said.err
    assert "Traceback" not in said.err + said.out
    assert "Error" not in said.err, said.err  # a class name is no explanation
    assert tree(Path()) == before
    return line


@dataclass(frozen=True)
class Case:
    """A command; `{run}` and the like stand for what the test made. All of `says` must be in its line."""

    words: str
    says: tuple[str, ...]

    def __str__(self) -> str:
        return self.words[:60]


def case(words: str, *says: str) -> Case:
    return Case(words, says)


@pytest.fixture
def things(run: Path, exported: Path, recipe: Path, corpus: Path, tmp_path: Path) -> dict[str, object]:
    """What the commands below speak of."""
    for name in ("empty", "full", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "old.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "other" / "picture.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "blank.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "sjis.txt").write_bytes("寺子屋".encode("shift_jis"))
    (tmp_path / "half.jsonl").write_text('{"text": "a"}\n{"text": ', encoding="utf-8")
    (tmp_path / "broken.toml").write_text("model = \n", encoding="utf-8")
    (tmp_path / "loop.toml").write_text('extends = "loop"\n', encoding="utf-8")
    (tmp_path / "fake.gguf").write_bytes(b"GGUF\x03")
    (tmp_path / "long.txt").write_text("a" * 500, encoding="utf-8")
    (tmp_path / "young").mkdir()
    shutil.copy(run / "recipe.toml", tmp_path / "young")
    return {"run": "run", "hf": exported, "recipe": recipe, "corpus": corpus}


LONG = "long" * 60

CASES = [
    # a file that is not there
    case("train nothing.toml", "nothing.toml", "no such file"),
    case("train smal", "no such file, run or recipe"),
    case("show nothing.toml", "nothing.toml", "no such file"),
    case("tokenizer train nowhere out", "nowhere", "does not exist"),
    case("tokenizer show nowhere text", "nowhere"),
    case("tokenizer report other", "other", "holds no tokenizer", "allowed: tokenizer.json"),
    case("data build nowhere out --tokenizer {run}", "nowhere", "does not exist"),
    case("data build {corpus} out --tokenizer nowhere", "nowhere"),
    case("data show nowhere", "nowhere", "no run"),
    case("data show young", "young", "has not begun to train", "terakoya train young"),
    case("eval {run} --text nowhere", "nowhere", "does not exist"),
    case("eval {hf}", "needs a text", "--text PATH"),
    case("generate nowhere a", "'nowhere'", "no such file or folder", "a run"),
    case("generate rum a", "'rum'", "did you mean 'run'?"),
    case("generate smolm2-135m-instruct a", "did you mean 'smollm2-135m-instruct'?"),
    case("generate HuggingFaceTB/SmolLM-nothing a", "HuggingFaceTB/SmolLM-nothing", "cannot be had", "network"),
    case("generate a/b/c a", "'a/b/c'", "no such file"),
    case("generate other a", "other", "holds no model", "config.json"),
    case("generate young a", "young", "without a checkpoint", "terakoya train young"),
    case("convert young out", "young", "without a checkpoint"),
    case("convert nowhere out", "no such file"),
    case("chat nowhere", "no such file"),
    case("lineage llma2", "'llma2' is not in the tree", "did you mean 'llama2'?"),
    # a recipe that is none
    case("train broken.toml --run out", "broken.toml", "not valid TOML"),
    case("train loop.toml --run out", "loop.toml", "extends itself"),
    case("train {recipe} --run out model=lama2/nano", "'lama2'", "did you mean 'llama2'?"),
    case("train {recipe} --run out model=llama2/nanno", "'nanno'", "did you mean 'nano'?"),
    case("train {recipe} --run out model.dmi=32", "dmi", "did you mean 'dim'?"),
    case("train {recipe} --run out rows.cuont=2", "cuont", "did you mean 'count'?"),
    case("train {recipe} --run out rows.count=two", "rows.count", "'two'", "a whole number"),
    case("train {recipe} --run out rows.count=0", "rows.count", "0", "1 or more"),
    case("train {recipe} --run out budget.steps=-1", "budget.steps", "-1"),
    case("train {recipe} --run out model.dim=33", "33"),
    case("train {recipe} --run out corpus.holdout=1", "corpus.holdout", "1.0"),
    case("train {recipe} --run out precision=fp8", "precision", "'fp8'", "bf16"),
    case("train {recipe} --run out device=cdua", "device", "'cdua'", "did you mean 'cuda'?"),
    case("serve {hf} --precision bf16", "--precision", "'bf16'", "for a GPU"),
    case("train {recipe} --run out device=cuda:99", "device", "'cuda:99'", "CUDA devices"),
    case('train {recipe} --run out track=["wandbb"]', "track", "'wandbb'", "did you mean 'wandb'?"),
    case('train {recipe} --run out track=["trackio"]', "trackio: is not installed", "terakoya[trackio]"),
    case("train {recipe} --run out optim.kind=adam", "kind"),
    case("train {recipe} --run out seed", "path=value"),
    case("train {recipe} --run out tokenizer.path=nowhere", "nowhere"),
    case("train {recipe} --run out tokenizer.size=3", "3"),
    case("train {recipe} --run out corpus.source=nowhere", "nowhere", "does not exist"),
    case("train {recipe} --run out corpus.source=empty", "empty", "holds no document"),
    case("train {recipe} --run out rows.context=100000", "context"),
    case("quickstart --run out --corpus nowhere", "nowhere", "does not exist"),
    case("quickstart --run out --minutes 0", "minutes"),
    case("quickstart --run out --minutes nan", "minutes"),
    case("quickstart --run out depht=3", "depht", "did you mean 'depth'?"),
    # a folder that is taken
    case("train {recipe} --run full", "full", "not empty", "another --run"),
    case("train {recipe} --run run model.dim=64", "run", "another recipe", "model"),
    case("train run seed=3", "run", "another recipe", "seed"),
    case("train {recipe} --run blank.txt", "blank.txt", "is a file"),
    case("quickstart --run run", "run", "another recipe"),
    case("tokenizer train {corpus} full", "full", "exists already", "new folder"),
    case("data build {corpus} full --tokenizer run", "full", "exists already"),
    case("convert run full", "full", "exists already", "new folder"),
    case("convert run blank.txt", "blank.txt", "exists already"),
    # a text that is none
    case("tokenizer train empty out", "empty", "holds no document", ".jsonl"),
    case("tokenizer train other out", "other", "holds no document"),
    case("tokenizer train blank.txt out", "blank.txt", "holds no document"),
    case("tokenizer train sjis.txt out", "sjis.txt", "not UTF-8 at byte 0", "iconv"),
    case("tokenizer train half.jsonl out", "half.jsonl:2", "not JSON"),
    case("tokenizer train {corpus} out --vocab 3", "3"),
    case("tokenizer train {corpus} out --vocab -3", "-3"),
    case("tokenizer train {corpus} out --sample 0", "0"),
    case("data build sjis.txt out --tokenizer run", "sjis.txt", "not UTF-8"),
    case("data build half.jsonl out --tokenizer run", "half.jsonl:2"),
    case("data show run --step 0", "--step", "1 to 5"),
    case("data show run --step 6", "--step", "1 to 5"),
    case("data show run --rows -1", "--rows", "-1"),
    case("eval run --text sjis.txt", "sjis.txt", "not UTF-8"),
    case("eval run --text empty", "empty", "holds no document"),
    case("eval run --window 1", "window", "2 to"),
    case("eval run --window 65", "window", "2 to"),
    case("eval run --limit 0", "limit", "0"),
    case("eval run --limit -5", "limit", "-5"),
    # a model or an answer that cannot be
    case("generate fake.gguf a", "fake.gguf", "ends inside the header"),
    case(f"generate run {LONG}", "prompt", "context", "shorten"),
    case(f"chat run --ask {LONG}", "context"),
    case("generate run a --temperature -1", "temperature", "-1.0", "0 (greedy)"),
    case("generate run a --temperature nan", "temperature", "nan"),
    case("generate run a --top-k -1", "top_k", "-1"),
    case("generate run a --top-p 0", "top_p"),
    case("generate run a --top-p 1.5", "top_p"),
    case("generate run a --min-p 2", "min_p"),
    case("generate run a --typical 0", "typical"),
    case("generate run a --repetition 0", "repetition"),
    case("generate run a --presence inf", "presence"),
    case("generate run a --frequency 1e9", "frequency"),
    case("generate run a --max-tokens 0", "max_tokens"),
    case("generate run a --seed -1", "seed"),
    case("chat run --ask a --top-p 7", "top_p"),
    case("generate nowhere a --top-p 7", "top_p"),  # said before a model is looked for
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_line_and_nothing_left(case: Case, things: dict[str, object]) -> None:
    line = refused(*(word.format(**things) for word in case.words.split()))
    missing = [said for said in case.says if said not in line]
    assert not missing, line


def test_stop_texts_and_prompts_are_not_empty(run: Path) -> None:
    assert "stop" in refused("generate", "run", "a", "--stop", "")


def test_standard_input_that_is_not_utf8(run: Path) -> None:
    line = refused("generate", "run", "-", stdin="寺子屋".encode("shift_jis"))
    assert "standard input: is not UTF-8 at byte 0" in line
    assert "not UTF-8" in refused("generate", "run", "a\udce5")


def test_a_recipe_says_where_it_is_wrong(recipe: Path, tmp_path: Path) -> None:
    whole = recipe.read_text(encoding="utf-8")
    for old, new, says in [
        ("[corpus]", "[corpse]", ("corpse", "did you mean 'corpus'?")),
        ("size = 300", 'size = "many"', ("tokenizer.size", "'many'", "a whole number")),
        ("size = 300", "size = 300.5", ("tokenizer.size", "300.5")),
        ("steps = 5", "steps = 5, minutes = 2", ("budget", "either steps or minutes")),
        ("count = 4", "count = true", ("rows.count", "True")),
        ('device = "cpu"', 'optim = { kind = "adm" }', ("optim.kind", "'adm'", "adamw")),
        ('"llama2/nano"', "[1]", ("model",)),
    ]:
        Path("bad.toml").write_text(whole.replace(old, new), encoding="utf-8")
        line = refused("train", "bad.toml", "--run", "out")
        assert [said for said in ("bad.toml", *says) if said not in line] == [], line


# Damaged files


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def one(folder: Path, pattern: str) -> Path:
    return next(iter(sorted(folder.glob(pattern))))


@pytest.mark.parametrize("words", ["train run", "data show run"])
def test_a_corrupt_shard_is_named(words: str, run: Path) -> None:
    flip(one(run, "data/train/tokens-*.bin"), 100)
    line = refused(*words.split())
    assert "tokens-00000.bin" in line
    assert "damaged" in line


def test_a_corrupt_heldout_shard_is_named(run: Path) -> None:
    flip(one(run, "data/heldout/tokens-*.bin"), 100)
    assert "damaged" in refused("eval", "run")
    (run / "data" / "heldout" / "tokens-00000.bin").write_bytes(b"")
    assert "0 bytes instead of" in refused("eval", "run")


def test_a_run_whose_checkpoints_are_all_damaged(run: Path) -> None:
    for path in run.glob("steps/*/model/model.safetensors"):
        flip(path)
    for words in ("generate run a", "eval run", "train run", "convert run out"):
        line = refused(*words.split())
        assert "no checkpoint is whole" in line
        assert "model.safetensors" in line


def test_a_tokenizer_of_another_model_in_a_run(run: Path) -> None:
    other = train(["まったく別の文章。" * 50], "bpe", 290)
    shutil.rmtree(run / "tokenizer")
    other.save(run / "tokenizer")
    for words in ("train run", "data show run"):
        assert "another tokenizer" in refused(*words.split())


def test_a_tokenizer_of_another_model_in_a_folder(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "mixed")
    vocab = open_model(str(exported)).spec.vocab
    train([chr(0x4E00 + i) for i in range(600)], "chars", 4000).save(folder)
    line = refused("generate", "mixed", "a")
    assert "belongs to another model" in line
    assert str(vocab) in line
    assert (folder / "config.json").is_file()


def test_a_folder_whose_weights_are_damaged(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for cut in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:cut])
        assert "model.safetensors" in refused("generate", "model", "a")
    weights.unlink()
    assert "model" in refused("generate", "model", "a")
    (folder / "config.json").write_text("{", encoding="utf-8")
    assert "config.json" in refused("generate", "model", "a")
    (folder / "config.json").write_text('{"model_type": "lama"}', encoding="utf-8")
    assert "'lama'" in refused("generate", "model", "a")


def test_a_folder_without_a_tokenizer(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in refused("generate", "model", "a")
    (folder / "tokenizer.json").write_text('{"model": 3}', encoding="utf-8")
    assert "model/tokenizer" in refused("generate", "model", "a")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """A llama of one layer, as llama.cpp stores it."""
    f32 = next(kind for kind in BLOCKS.values() if kind.name == "F32")
    keys = {"embedding_length": 8, "feed_forward_length": 16, "block_count": 1, "context_length": 32}
    keys |= {"attention.head_count": 2, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5}
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a"]
    shapes = {"token_embd.weight": (len(pieces), 8), "output_norm.weight": (8,)}
    shapes |= {f"blk.0.{n}_norm.weight": (8,) for n in ("attn", "ffn")}
    shapes |= {f"blk.0.attn_{n}.weight": (8, 8) for n in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate.weight": (16, 8), "blk.0.ffn_up.weight": (16, 8), "blk.0.ffn_down.weight": (8, 16)}
    rng = np.random.default_rng(0)
    tensors = {n: (f32, rng.standard_normal(s).astype(np.float32), s) for n, s in shapes.items()}
    metadata = {"general.architecture": "llama", **{f"llama.{k}": v for k, v in keys.items()}}
    metadata |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.array([0.0] * 3 + [0.0] * 256 + [-1.0, -2.0], np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1, 1], np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    path = tmp_path / "tiny.gguf"
    write_gguf(path, metadata, tensors)
    return path


def test_a_truncated_gguf_is_named(gguf: Path, terakoya: Terakoya) -> None:
    said = terakoya("generate", "tiny.gguf", "a", "--max-tokens", 3)
    assert said.code == 0, said.err
    whole = gguf.read_bytes()
    for cut in (0, 3, 4, 10, 24, 100, 5000, len(whole) // 2, len(whole) - 33):
        gguf.write_bytes(whole[:cut])
        for words in ("generate tiny.gguf a", "tokenizer report tiny.gguf", "convert tiny.gguf out"):
            assert "tiny.gguf" in refused(*words.split())


def test_a_gguf_of_an_unknown_architecture(gguf: Path) -> None:
    gguf.write_bytes(gguf.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lmama", 1))
    line = refused("generate", "tiny.gguf", "a")
    assert "general.architecture" in line
    assert "'lmama'" in line


# A system that says no


def test_missing_extras_say_how_to_get_them(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, things: dict[str, object]
) -> None:
    (tmp_path / "text.parquet").write_bytes(b"PAR1")
    for library, extra, words in [
        ("huggingface_hub", "hub", "generate owner/name a"),
        ("pyarrow", "parquet", "tokenizer train text.parquet out"),
    ]:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            line = refused(*words.split())
            assert f"{library}: is not installed" in line
            assert f"pip install 'terakoya[{extra}]'" in line


@contextmanager
def little_space(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 3000])
@pytest.mark.parametrize(
    "words",
    [
        "tokenizer train {corpus} out",
        "data build {corpus} out --tokenizer run",
        "convert run out",
        "train {recipe} --run out",
        "lineage --html tree.html",
    ],
)
def test_a_full_disk(size: int, words: str, things: dict[str, object]) -> None:
    with little_space(size):
        line = refused(*(word.format(**things) for word in words.split()))
    assert "out" in line or "tree.html" in line
    assert "written" in line or "too large" in line


def test_a_disk_that_fills_while_training_loses_no_checkpoint(
    recipe: Path, terakoya: Terakoya, tmp_path: Path, finished: Path
) -> None:
    words = ("train", recipe, *SMALL, "--run", "out")
    limit = max(p.stat().st_size for p in finished.glob("data/*/*")) + 100  # shards fit, a checkpoint does not
    weights = max(p.stat().st_size for p in finished.glob("steps/*/*/*.safetensors"))
    if limit >= weights:
        limit = weights - 1
    with little_space(limit):
        said = terakoya(*words)
    assert (said.code, said.err.count("\n")) == (2, 1), said.err
    assert "could not be saved" in said.err
    assert not list(Path("out").rglob(".*"))
    assert terakoya("train", "out").code == 0
    assert Path("out/metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


@contextmanager
def nobody() -> Iterator[Path]:
    """Be a user without rights, in a folder that this user may look at and write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o700)
        shutil.rmtree(folder)


def test_no_permission(finished: Path, corpus: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say("generate", finished, "a", "--max-tokens", 1)  # import everything while one may
    closed: list[Callable[[Path], str]] = [
        lambda f: refused("tokenizer", "train", f / "texts", f / "out"),
        lambda f: refused("tokenizer", "train", f / "mine.txt", f / "locked" / "out"),
        lambda f: refused("tokenizer", "report", f / "locked" / "tokenizer.json"),
        lambda f: refused("generate", f / "model.gguf", "a"),
        lambda f: refused("generate", f / "locked", "a"),
        lambda f: refused("train", f / "locked.toml", "--run", f / "out"),
        lambda f: refused("train", f / "open.toml", "--run", f / "locked" / "out"),
        lambda f: refused("lineage", "--html", f / "locked" / "tree.html"),
    ]
    with nobody() as f:
        monkeypatch.chdir(f)
        (f / "texts").mkdir()
        for name in ("texts/a.txt", "mine.txt"):
            (f / name).write_text("寺子屋 school " * 100, encoding="utf-8")
        (f / "texts" / "a.txt").chmod(0)
        (f / "model.gguf").write_bytes(b"GGUF" + bytes(100))
        (f / "model.gguf").chmod(0)
        (f / "locked.toml").write_text("", encoding="utf-8")
        (f / "locked.toml").chmod(0)
        (f / "open.toml").write_text('corpus = { source = "mine.txt" }', encoding="utf-8")
        (f / "locked").mkdir()
        (f / "locked").chmod(0o555)
        for attempt in closed[:2]:
            assert "ermission denied" in attempt(f)
        (f / "locked").chmod(0)
        monkeypatch.setattr("tests.cli.test_bad_input.tree", lambda folder: {})  # not even we may look
        for attempt in closed[2:]:
            line = attempt(f)
            assert "locked" in line or "model.gguf" in line, line
        monkeypatch.chdir("/")


def test_the_last_net_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(args: object) -> None:
        raise OSError(28, "No space left on device", "/somewhere/out")

    monkeypatch.setattr("terakoya.cli.lineage.lineage", full)
    with pytest.raises(SystemExit) as end:
        main(["lineage"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "terakoya: /somewhere/out: No space left on device; free space, or choose another place\n"
    )


def test_errors_of_ours_stay_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is no mistake of the user: it must not be dressed up as one."""

    def broken(args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("terakoya.cli.lineage.lineage", broken)
    with pytest.raises(ZeroDivisionError):
        main(["lineage"])


def test_a_damaged_metrics_file_is_named(run: Path) -> None:
    (run / "metrics.jsonl").write_text(json.dumps({"loss": 1}) + "\n", encoding="utf-8")
    assert "metrics.jsonl:1" in refused("train", "run")
