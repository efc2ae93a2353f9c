"""The command line: one row per verb. Nothing heavy is imported before a verb is known."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from terakoya import __version__
from terakoya.errors import TerakoyaError, nearest

Add = Callable[[argparse.ArgumentParser], None]


def _recipe(p: argparse.ArgumentParser) -> None:
    p.add_argument("recipe", metavar="RECIPE", help="a .toml file, the name of one in recipes/, or a run's folder")
    p.add_argument("overrides", nargs="*", metavar="path=value", help="changes, e.g. model.depth=6 budget.minutes=5")


def _train(p: argparse.ArgumentParser) -> None:
    _recipe(p)
    p.add_argument("--run", metavar="NAME", help="folder of the run (default: runs/RECIPE); an unfinished one resumes")


def _sampling(p: argparse.ArgumentParser) -> None:
    p.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default 0.7)")
    p.add_argument("--top-k", type=int, default=0, help="keep the K likeliest tokens; 0: all")
    p.add_argument("--top-p", type=float, default=0.95, help="keep the likeliest tokens of this mass (default 0.95)")
    p.add_argument("--min-p", type=float, default=0.0, help="keep tokens at least this likely, relative to the best")
    p.add_argument("--typical", type=float, default=1.0, help="keep the most typical tokens of this mass")
    p.add_argument("--repetition", type=float, default=1.0, help="divide scores of tokens already there")
    p.add_argument("--presence", type=float, default=0.0, help="subtract from scores of tokens already answered")
    p.add_argument("--frequency", type=float, default=0.0, help="the same, once per occurrence")
    p.add_argument("--max-tokens", type=int, default=256, help="length of the answer at most (default 256)")
    p.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    p.add_argument("--seed", type=int, help="the same seed gives the same answer")


def _model(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="MODEL", help="a run, a folder, a .gguf file, smollm2-135m-instruct, or owner/name")


def _generate(p: argparse.ArgumentParser) -> None:
    _model(p)
    p.add_argument("prompt", metavar="PROMPT", help="the text to continue; - reads standard input")
    _sampling(p)


def _chat(p: argparse.ArgumentParser) -> None:
    _model(p)
    p.add_argument("--system", help="a system message")
    p.add_argument("--ask", action="append", default=[], metavar="TEXT", help="ask this and exit; may be repeated")
    _sampling(p)


def _eval(p: argparse.ArgumentParser) -> None:
    _model(p)
    p.add_argument("--text", metavar="PATH", help="a file or folder (default: the held-out text of a run)")
    p.add_argument("--limit", type=int, default=1_000_000, help="bytes of text at most (default 1,000,000)")
    p.add_argument("--window", type=int, help="tokens a prediction may look back at")


def _tokenizer(p: argparse.ArgumentParser) -> None:
    verbs = p.add_subparsers(dest="action", metavar="ACTION", required=True)
    t = verbs.add_parser("train", help="Train a tokenizer. トークナイザーを訓練する。")
    t.add_argument("corpus", metavar="CORPUS", help="python-stdlib, a folder, or a file")
    t.add_argument("out", metavar="FOLDER", help="where to write tokenizer.json")
    t.add_argument("--type", default="bpe", choices=["bpe", "unigram", "bytes", "chars"])
    t.add_argument("--vocab", type=int, default=8192)
    t.add_argument("--sample", type=int, default=16_000_000, help="bytes of text to read at most")
    s = verbs.add_parser("show", help="Show how a text is cut. 文章の切れ方を見る。")
    s.add_argument("tokenizer", metavar="TOKENIZER", help="a folder, tokenizer.json, .model, .gguf, or a run")
    s.add_argument("text", metavar="TEXT")
    r = verbs.add_parser("report", help="Measure compression and coverage. 圧縮率と被覆を測る。")
    r.add_argument("tokenizer", metavar="TOKENIZER")


def _data(p: argparse.ArgumentParser) -> None:
    verbs = p.add_subparsers(dest="action", metavar="ACTION", required=True)
    b = verbs.add_parser("build", help="Turn a corpus into token shards. 文書をトークン列に変える。")
    b.add_argument("corpus", metavar="CORPUS", help="python-stdlib, a folder, or a file")
    b.add_argument("out", metavar="FOLDER")
    b.add_argument("--tokenizer", required=True, metavar="TOKENIZER")
    s = verbs.add_parser("show", help="Print the very documents of a step. ある段の文書そのものを表示する。")
    s.add_argument("run", metavar="RUN")
    s.add_argument("--step", type=int, default=1, help="from 1")
    s.add_argument("--rows", type=int, default=4, help="rows to print (default 4; 0: all)")


def _convert(p: argparse.ArgumentParser) -> None:
    _model(p)
    p.add_argument("out", metavar="FOLDER", help="a new folder that transformers opens")
    p.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])


def _lineage(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", nargs="?", metavar="NAME", help="one system, e.g. llama2")
    p.add_argument("--lang", choices=["en", "ja"], default="ja" if _japanese() else "en")
    p.add_argument("--mermaid", action="store_true", help="print the tree as a mermaid flowchart")
    p.add_argument("--html", metavar="FILE", help="write the tree as one self-contained page")


def _quickstart(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--run", metavar="NAME", default="runs/quickstart", help="folder of the run (default runs/quickstart)"
    )
    p.add_argument(
        "--corpus", metavar="PATH", default="python-stdlib", help="text to learn (default: Python's library)"
    )
    p.add_argument("--minutes", type=float, default=2.0, help="training time (default 2)")
    p.add_argument("--no-chat", action="store_true", help="stop after the small model")
    p.add_argument("overrides", nargs="*", metavar="path=value", help="changes of the recipe")


VERBS: dict[str, tuple[str, Add]] = {
    "quickstart": ("Train a small model now, then talk to a real one. 小さなモデルを育て、本物と話す。", _quickstart),
    "train": ("Train from a recipe; resume an unfinished run. レシピから訓練する。", _train),
    "show": ("Print the resolved recipe. 解決済みのレシピを表示する。", _recipe),
    "generate": ("Continue a text. 文章の続きを書く。", _generate),
    "chat": ("Talk to a model in the terminal. 端末でモデルと話す。", _chat),
    "eval": ("Perplexity and bits per byte of a text. 困惑度とバイトあたりビット数を測る。", _eval),
    "tokenizer": ("Train, show or measure a tokenizer. トークナイザーを作る・見る・測る。", _tokenizer),
    "data": ("Build token shards; see what a step saw. 学習データを作る・覗く。", _data),
    "convert": ("Write a model as a Hugging Face folder. モデルを Hugging Face 形式で書き出す。", _convert),
    "lineage": ("The tree of language models. 言語モデルの系譜を描く。", _lineage),
}
MODULES = {"show": "train", "generate": "use", "chat": "use", "eval": "use", "convert": "use"}


def parser() -> argparse.ArgumentParser:
    """Build the parser of all verbs."""
    p = _Parser(
        prog="terakoya",
        description="A school for language models: from raw text to a model that talks.\n言語モデルの小さな学校。",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--version", action="version", version=f"terakoya {__version__}")
    verbs = p.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for name, (about, add) in VERBS.items():
        add(verbs.add_parser(name, help=about, description=about))
    return p


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors that name the nearest verb."""

    def error(self, message: str) -> None:  # type: ignore[override]
        wrong = message.partition("invalid choice: '")[2].partition("'")[0]
        hint = nearest(wrong, VERBS) if wrong else ""
        self.exit(2, f"{self.prog}: {message}{'; ' + hint if hint else ''}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb; a mistake of the user is one line on standard error and exit code 2."""
    p = parser()
    args = p.parse_args(arguments)
    if args.verb is None:
        p.print_help()
        return
    try:
        module = importlib.import_module(f"terakoya.cli.{MODULES.get(args.verb, args.verb)}")
        getattr(module, args.verb)(args)
    except TerakoyaError as error:
        sys.exit(_say(f"terakoya: {error}"))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        sys.exit(130)


def _say(message: str) -> int:
    sys.stderr.write(message + "\n")
    return 2


def _japanese() -> bool:
    return any(os.environ.get(name, "").startswith("ja") for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
