"""The command line: one row per verb. Nothing heavy is imported before a verb is known."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from terakoya import __version__
from terakoya.errors import TerakoyaError, nearest

Add = Callable[[argparse.ArgumentParser], None]
TOKENIZER = "a folder, tokenizer.json, .model, .gguf, or a run"
VECTORS = "a folder, or a word2vec file: .bin is binary, others text"


def _recipe(p: argparse.ArgumentParser) -> None:
    p.add_argument("recipe", metavar="RECIPE", help="a .toml file, the name of one in recipes/, or a run's folder")
    p.add_argument("overrides", nargs="*", metavar="path=value", help="changes, e.g. model.depth=6 budget.minutes=5")


def _train(p: argparse.ArgumentParser) -> None:
    _recipe(p)
    p.add_argument("--run", metavar="NAME", help="folder of the run (default: runs/RECIPE); an unfinished one resumes")


def _sampling(p: argparse.ArgumentParser) -> None:
    p.add_argument("--temperature", metavar="X", type=float, default=0.7, help="0 is greedy (default 0.7)")
    p.add_argument("--top-k", metavar="N", type=int, default=0, help="keep the K likeliest tokens; 0: all")
    p.add_argument(
        "--top-p", metavar="X", type=float, default=0.95, help="keep the likeliest tokens of this mass (default 0.95)"
    )
    p.add_argument(
        "--min-p", metavar="X", type=float, default=0.0, help="keep tokens at least this likely, relative to the best"
    )
    p.add_argument("--typical", metavar="X", type=float, default=1.0, help="keep the most typical tokens of this mass")
    p.add_argument("--repetition", metavar="X", type=float, default=1.0, help="divide scores of tokens already there")
    p.add_argument(
        "--presence", metavar="X", type=float, default=0.0, help="subtract from scores of tokens already answered"
    )
    p.add_argument("--frequency", metavar="X", type=float, default=0.0, help="the same, once per occurrence")
    p.add_argument(
        "--max-tokens", metavar="N", type=int, default=256, help="length of the answer at most (default 256)"
    )
    p.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    p.add_argument("--seed", metavar="N", type=int, help="the same seed gives the same answer")


def _model(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="MODEL", help="a run, a folder, a .gguf file, smollm2-135m-instruct, or owner/name")


def _runner(p: argparse.ArgumentParser) -> None:
    p.add_argument("--weights", choices=["int8", "int4"], help="pack fp32 weights: faster, a little worse")
    p.add_argument("--by", choices=["auto", "native", "torch"], default="auto", help="who computes (default auto)")


def _rope(p: argparse.ArgumentParser) -> None:
    p.add_argument("--rope", metavar="HOW:N", help="read N times as long texts: yarn:2, dynamic:2, linear:2, llama3:2")


def _draft(p: argparse.ArgumentParser) -> None:
    p.add_argument("--draft", metavar="MODEL", help="a smaller model with the same tokenizer, to guess ahead")


def _generate(p: argparse.ArgumentParser) -> None:
    _model(p)
    _runner(p)
    _rope(p)
    p.add_argument("prompt", metavar="PROMPT", nargs="?", help="the text to continue; - reads standard input")
    _draft(p)
    p.add_argument("--batch", metavar="FILE", help="answer many: JSON lines with prompt or messages, and perhaps an id")
    _pictures(p)
    _sampling(p)


def _chat(p: argparse.ArgumentParser) -> None:
    _model(p)
    _runner(p)
    _rope(p)
    _draft(p)
    p.add_argument("--system", metavar="TEXT", help="a system message")
    p.add_argument(
        "--template", metavar="NAME", help="how turns are written: chatml, llama3, … (else as the model says)"
    )
    p.add_argument("--ask", action="append", default=[], metavar="TEXT", help="ask this and exit; may be repeated")
    _pictures(p)
    _sampling(p)


def _pictures(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="show a PNG or JPEG to a LLaVA; may be repeated"
    )


def _serve(p: argparse.ArgumentParser) -> None:
    p.add_argument("models", nargs="+", metavar="MODEL", help="as for chat; NAME=MODEL gives it a name of its own")
    p.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=FOLDER", help="on the first model, or on FOLDER@MODEL"
    )
    p.add_argument("--adapters", metavar="FOLDER", help="let clients with a key load adapters from here")
    p.add_argument("--host", metavar="NAME", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    p.add_argument("--port", metavar="N", type=int, default=8484, help="(default 8484; 0: any that is free)")
    p.add_argument("--api-key-file", metavar="FILE", help="keys that clients must give, one a line")
    p.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a further name of this server")
    p.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="a site whose pages may ask")
    p.add_argument("--insecure", action="store_true", help="let others in without a key")
    p.add_argument("--device", metavar="NAME", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    p.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of numbers on a GPU (default: bf16)"
    )
    _runner(p)
    p.add_argument(
        "--rope", action="append", default=[], metavar="HOW:N", help="longer texts for the first model, or HOW:N@MODEL"
    )
    p.add_argument(
        "--draft", action="append", default=[], metavar="DRAFT", help="guesses for the first model, or DRAFT@MODEL"
    )
    p.add_argument("--keep", metavar="N", type=int, default=0, help="models open at once (default: all)")
    p.add_argument(
        "--idle", metavar="MIN", type=float, default=0.0, help="close a model after so long (default: never)"
    )
    p.add_argument("--queue", metavar="N", type=int, default=256, help="requests that may wait (default 256)")
    p.add_argument("--max-tokens", metavar="N", type=int, default=512, help="of answers, if not asked (default 512)")
    p.add_argument("--answer-time", metavar="S", type=float, default=120.0, help="of one answer (default 120 s)")
    p.add_argument("--grace", metavar="S", type=float, default=30.0, help="time to finish after SIGTERM (default 30)")
    p.add_argument("--deterministic", action="store_true", help="same request, same bits, whatever else runs; slower")


def _eval(p: argparse.ArgumentParser) -> None:
    _model(p)
    p.add_argument("--text", metavar="PATH", help="a file or folder (default: the held-out text of a run)")
    p.add_argument(
        "--limit", metavar="N", type=int, default=1_000_000, help="bytes of text at most (default 1,000,000)"
    )
    p.add_argument("--window", metavar="N", type=int, help="tokens a prediction may look back at")


def _fill(p: argparse.ArgumentParser) -> None:
    _model(p)
    p.add_argument("text", metavar="TEXT", help="a text with [MASK] where something is missing")
    p.add_argument("--top", metavar="N", type=int, default=5, help="guesses for each gap (default 5)")


def _embed(p: argparse.ArgumentParser) -> None:
    _model(p)
    p.add_argument("texts", nargs="*", metavar="TEXT", help="texts (default: one a line from standard input)")
    p.add_argument("--near", action="store_true", help="print how near the texts are to each other, not the vectors")


def _classify(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="RUN", help="the run of a head (recipes/head-jnli.toml)")
    p.add_argument("text", metavar="TEXT", help="the text, or the first of a pair")
    p.add_argument("second", nargs="?", metavar="SECOND", help="the second text of a pair")


def _action(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, about: str
) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=about, description=about)


def _tokenizer(p: argparse.ArgumentParser) -> None:
    verbs = p.add_subparsers(dest="action", metavar="ACTION", required=True)
    t = _action(verbs, "train", "Train a tokenizer. トークナイザーを訓練する。")
    t.add_argument("corpus", metavar="CORPUS", help="python-stdlib, a folder, or a file")
    t.add_argument("out", metavar="FOLDER", help="where to write tokenizer.json")
    t.add_argument("--type", default="bpe", choices=["bpe", "unigram", "bytes", "chars"], help="(default bpe)")
    t.add_argument("--vocab", metavar="N", type=int, default=8192, help="pieces at most (default 8192)")
    t.add_argument("--sample", metavar="N", type=int, default=16_000_000, help="bytes of text to read at most")
    e = _action(verbs, "extend", "Add pieces of a new language to a model. 新しい言語の語片をモデルに足す。")
    _model(e)
    e.add_argument("corpus", metavar="CORPUS", help="text of the new language: a folder or a file")
    e.add_argument("out", metavar="FOLDER", help="a new folder for the larger model")
    e.add_argument("--pieces", metavar="N", type=int, default=4096, help="pieces to add at most (default 4096)")
    e.add_argument("--sample", metavar="N", type=int, default=16_000_000, help="bytes of text to read at most")
    e.add_argument("--measure", metavar="N", type=int, default=20_000, help="bytes of other text to measure on")
    s = _action(verbs, "show", "Show how a text is cut. 文章の切れ方を見る。")
    s.add_argument("tokenizer", metavar="TOKENIZER", help=TOKENIZER)
    s.add_argument("text", metavar="TEXT", help="the text to cut")
    r = _action(verbs, "report", "Measure compression and coverage. 圧縮率と被覆を測る。")
    r.add_argument("tokenizer", metavar="TOKENIZER", help=TOKENIZER)


def _data(p: argparse.ArgumentParser) -> None:
    verbs = p.add_subparsers(dest="action", metavar="ACTION", required=True)
    b = _action(verbs, "build", "Turn a corpus into token shards. 文書をトークン列に変える。")
    b.add_argument("corpus", metavar="CORPUS", help="python-stdlib, a folder, or a file")
    b.add_argument("out", metavar="FOLDER", help="a new folder for the shards")
    b.add_argument("--tokenizer", required=True, metavar="TOKENIZER", help=TOKENIZER)
    s = _action(verbs, "show", "Print the very documents of a step. ある段の文書そのものを表示する。")
    s.add_argument("run", metavar="RUN", help="the folder of a run")
    s.add_argument("--step", metavar="N", type=int, default=1, help="from 1 (default 1)")
    s.add_argument("--rows", metavar="N", type=int, default=4, help="rows to print (default 4; 0: all)")
    m = _action(verbs, "synth", "Let a model write examples. モデルに例文を書かせる。")
    m.add_argument(
        "writer", metavar="WRITER", help="a model, as for chat, or an OpenAI-like server's http(s)://host/v1"
    )
    m.add_argument("seeds", metavar="SEEDS", help="rows with prompts to begin with: .jsonl(.zst), .parquet or a folder")
    m.add_argument("out", metavar="FILE", help="a new .jsonl file")
    m.add_argument(
        "--way", default="instruct", choices=["instruct", "explain", "prefer"],
        help="new tasks, explained answers, or pairs: the answers given before the model's own",
    )  # fmt: skip
    m.add_argument("--lang", default="ja", choices=["ja", "en"], help="language of the examples (default ja)")
    m.add_argument("--count", metavar="N", type=int, default=100, help="rows to make (default 100)")
    m.add_argument("--tokens", metavar="N", type=int, default=256, help="length of an answer at most (default 256)")
    m.add_argument("--temperature", metavar="X", type=float, default=0.8, help="(default 0.8)")
    m.add_argument("--seed", metavar="N", type=int, default=0, help="the same seed and model give the same rows")
    m.add_argument("--name", metavar="NAME", default="default", help="the model's name on the server")
    m.add_argument("--key", metavar="VARIABLE", default="", help="environment variable that holds the server's key")
    m.add_argument(
        "--benchmark", action="append", default=[], metavar="FILE", help="rows no question may copy; may be repeated"
    )


def _translate(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN", help="the folder of a run on pairs (recipes/translate.toml)")
    p.add_argument("text", metavar="TEXT", help="the text to translate")
    p.add_argument("--beam", metavar="N", type=int, default=4, help="hypotheses kept; 1 is greedy (default 4)")
    p.add_argument("--max-tokens", metavar="N", type=int, default=80, help="of the translation (default 80)")
    p.add_argument("--map", metavar="FILE", help="draw where the model looked, as a PNG")


def _vectors(p: argparse.ArgumentParser) -> None:
    verbs = p.add_subparsers(dest="action", metavar="ACTION", required=True)
    t = _action(verbs, "train", "Learn word vectors. 単語ベクトルを学ぶ。")
    t.add_argument("corpus", metavar="CORPUS", help="python-stdlib, a folder, or a file")
    t.add_argument("out", metavar="FOLDER", help="a new folder for the vectors")
    t.add_argument("--method", default="skipgram", choices=["skipgram", "cbow", "glove"], help="(default skipgram)")
    cuts = ["words", "ja", "chars", "spaces"]
    about = "what a word is: letters and digits, MeCab's, characters, between spaces (default words)"
    t.add_argument("--split", default="words", choices=cuts, help=about)
    t.add_argument("--dim", metavar="N", type=int, default=100, help="width (default 100)")
    t.add_argument("--window", metavar="N", type=int, help="words to either side (default 5; glove 10)")
    t.add_argument("--negative", metavar="N", type=int, help="noise words; 0: hierarchical softmax (5)")
    t.add_argument("--epochs", metavar="N", type=int, help="(default 5; glove 25)")
    t.add_argument("--min-count", metavar="N", type=int, default=5, help="rarer words are left out (default 5)")
    t.add_argument("--sample", metavar="X", type=float, help="thin out words above this share (1e-3)")
    t.add_argument("--rate", metavar="X", type=float, help="learning rate (default 0.025; cbow and glove 0.05)")
    t.add_argument("--subwords", action="store_true", help="words are bags of character n-grams, as in fastText")
    t.add_argument("--min-n", metavar="N", type=int, help="shortest n-gram (default 3; Japanese: 1)")
    t.add_argument("--max-n", metavar="N", type=int, help="longest n-gram (default 6; Japanese: 3)")
    t.add_argument("--buckets", metavar="N", type=int, help="rows of n-grams (default 200,000)")
    t.add_argument("--parts", metavar="FILE", help="parts of characters as subwords too: lines like 語 : 言 五 口")
    t.add_argument("--limit", metavar="N", type=int, help="bytes of text at most")
    t.add_argument("--seed", metavar="N", type=int, default=0, help="(default 0)")
    t.add_argument("--threads", metavar="N", type=int, default=1, help="more are not reproducible (default 1)")
    n = _action(verbs, "neighbours", "Words of like meaning. 意味の近い単語。")
    n.add_argument("vectors", metavar="VECTORS", help=VECTORS)
    n.add_argument("word", metavar="WORD", help="the word to look up")
    a = _action(verbs, "analogy", "A is to B as C is to what? A と B の関係を C に当てはめる。")
    a.add_argument("vectors", metavar="VECTORS", help=VECTORS)
    for name in "abc":
        a.add_argument(name, metavar=name.upper(), help="a word, as in: man king woman")
    for verb in (n, a):
        verb.add_argument("--count", metavar="N", type=int, default=10, help="words to list (default 10)")
    e = _action(verbs, "export", "Write word2vec's format. word2vec 形式で書き出す。")
    e.add_argument("vectors", metavar="VECTORS", help=VECTORS)
    e.add_argument("out", metavar="FILE", help="a new file")
    e.add_argument("--format", default="text", choices=["text", "binary"], help="(default text)")


def _convert(p: argparse.ArgumentParser) -> None:
    _model(p)
    p.add_argument("out", metavar="OUT", help="a new folder that transformers opens; with --to gguf a new file")
    p.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"], help="(default float32)")
    p.add_argument("--to", default="hf", choices=["hf", "gguf"], help="Hugging Face folder or GGUF file (default hf)")
    p.add_argument("--type", default="f16", metavar="T", help="of GGUF: f16, q8_0, q4_0, q4_k_m … (default f16)")


def _quantize(p: argparse.ArgumentParser) -> None:
    _model(p)
    p.add_argument("--to", required=True, metavar="CODEC", help="int8, int4, nf4, fp8, a GGUF type (q4_k …), none")
    p.add_argument(
        "--method", default="rtn", choices=["rtn", "gptq", "awq"], help="of int4 and int8 (default rtn: rounding)"
    )
    p.add_argument("--group", metavar="N", type=int, help="columns with one scale; 0: a row (default 32)")
    p.add_argument("--table", default="int8", choices=["int8", "same", "none"], help="token table, head (default int8)")
    p.add_argument(
        "--memory", default="full", choices=["full", "int8", "fp8"], help="of keys and values (default full)"
    )
    p.add_argument("--calibrate", metavar="TEXT", help="a file or folder that gptq and awq look at")
    p.add_argument("--tokens", metavar="N", type=int, default=8192, help="of it to look at (default 8192)")
    p.add_argument("--text", metavar="TEXT", help="another text to measure bits per byte and KL on")
    p.add_argument("--limit", metavar="N", type=int, default=60_000, help="bytes of it at most (default 60,000)")
    p.add_argument("--no-speed", action="store_true", help="measure no tokens/s")
    p.add_argument("--out", metavar="FOLDER", help="write the packed model to a new folder")


def _lineage(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", nargs="?", metavar="NAME", help="one system, e.g. llama2")
    p.add_argument(
        "--lang", choices=["en", "ja"], default="ja" if _japanese() else "en", help="(default: as the terminal)"
    )
    p.add_argument("--mermaid", action="store_true", help="print the tree as a mermaid flowchart")
    p.add_argument("--html", metavar="FILE", help="write the tree as one self-contained page")


def _quickstart(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--run", metavar="NAME", default="runs/quickstart", help="folder of the run (default runs/quickstart)"
    )
    p.add_argument(
        "--corpus", metavar="PATH", default="python-stdlib", help="text to learn (default: Python's library)"
    )
    p.add_argument("--minutes", metavar="X", type=float, default=2.0, help="training time (default 2)")
    p.add_argument("--no-chat", action="store_true", help="stop after the small model")
    p.add_argument("overrides", nargs="*", metavar="path=value", help="changes of the recipe")


VERBS: dict[str, tuple[str, Add]] = {
    "quickstart": ("Train a small model now, then talk to a real one. 小さなモデルを育て、本物と話す。", _quickstart),
    "train": ("Train from a recipe; resume an unfinished run. レシピから訓練する。", _train),
    "tune": ("Tune a model: examples, preferences, adapters. モデルを調整する。", _train),
    "show": ("Print the resolved recipe. 解決済みのレシピを表示する。", _recipe),
    "generate": ("Continue a text. 文章の続きを書く。", _generate),
    "chat": ("Talk to a model in the terminal. 端末でモデルと話す。", _chat),
    "serve": ("Serve models to OpenAI and Ollama clients, with a page to chat. モデルを配信する。", _serve),
    "eval": ("Perplexity and bits per byte of a text. 困惑度とバイトあたりビット数を測る。", _eval),
    "fill": ("Guess what stands at [MASK]. [MASK] に入る言葉を当てる。", _fill),
    "embed": ("Turn texts into vectors. 文章をベクトルにする。", _embed),
    "classify": ("Label a text or a pair with a tuned head. 文章や文の組を分類する。", _classify),
    "tokenizer": ("Train, show or measure a tokenizer. トークナイザーを作る・見る・測る。", _tokenizer),
    "data": ("Build token shards; see what a step saw. 学習データを作る・覗く。", _data),
    "translate": ("Translate with a model of pairs. 対訳で育てたモデルで訳す。", _translate),
    "vectors": ("Learn word vectors; neighbours, analogies. 単語ベクトルを学ぶ・調べる。", _vectors),
    "convert": ("Write a model as a Hugging Face folder or GGUF file. モデルを書き出す。", _convert),
    "quantize": ("Pack weights into fewer bits; measure what it costs. 重みを少ないビットに詰める。", _quantize),
    "lineage": ("The tree of language models. 言語モデルの系譜を描く。", _lineage),
}
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it
MODULES = {"show": "train", "generate": "use", "chat": "use", "eval": "weigh"}
MODULES |= dict.fromkeys(("fill", "embed", "classify"), "understand")


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
    """argparse with one-line errors that name the nearest verb, choice or option."""

    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)|unrecognized arguments: (-\S+)", message)
        hint = ""
        if found:
            options = [o for a in self._actions for o in a.option_strings]
            hint = nearest(found[1] or found[3], options if found[3] else re.findall(r"[\w-]+", found[2]))
        self.exit(2, f"{self.prog}: {' '.join(message.split())}{'; ' + hint if hint else ''}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb; a mistake of the user is one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no kana still gets its answer
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    p = parser()
    args = _parsed(p, arguments)
    if args.verb is None:
        p.print_help()
        return
    try:
        module = importlib.import_module(f"terakoya.cli.{MODULES.get(args.verb, args.verb)}")
        getattr(module, args.verb)(args)
    except TerakoyaError as error:
        sys.exit(_say(f"terakoya: {error}"))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        reason = error.strerror or str(error)
        sys.exit(_say(f"terakoya: {error.filename or 'the system'}: {reason}; free space, or choose another place"))
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        sys.exit(130)


def _parsed(p: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse; `path=value` may stand before and after options, which argparse alone does not see."""
    given = [_utf8(text) for text in (sys.argv[1:] if arguments is None else arguments)]
    args, left = p.parse_known_args(given)
    if hasattr(args, "overrides"):
        args.overrides += [text for text in left if not text.startswith("-")]
        left = [text for text in left if text.startswith("-")]
    if left:
        verbs = next(a for a in p._actions if isinstance(a, argparse._SubParsersAction))
        verbs.choices.get(args.verb, p).error(f"unrecognized arguments: {' '.join(left)}")
    return args


def _utf8(text: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):  # how Python hands over bytes that are no UTF-8
        sys.exit(_say(f"terakoya: argument {os.fsencode(text)!r}: is not UTF-8; set the terminal to UTF-8"))
    return text


def _say(message: str) -> int:
    sys.stderr.write(" ".join(message.split()) + "\n")
    return 2


def _japanese() -> bool:
    return any(os.environ.get(name, "").startswith("ja") for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
