"""From a corpus to a run's tokenizer and shards; what is there already is used again."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from terakoya import corpus
from terakoya.corpus import Document
from terakoya.data import build
from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Tokenizer, train
from terakoya.tokenizer.trainer import SPECIALS
from terakoya.train.recipe import Corpus, Recipe
from terakoya.train.run import Run

Say = Callable[[str], None]
FEW = 50  # documents; fewer are cut each into head and tail instead of holding whole ones out
log = logging.getLogger(__name__)


def documents(plan: Corpus) -> Iterator[Document]:
    """Read the corpus, up to its limit in bytes of UTF-8."""
    if plan.source == "python-stdlib":
        found: Iterable[Document] = corpus.python_stdlib()
    else:
        found = corpus.read(Path(plan.source))
    left = plan.limit
    for document in found:
        if left is not None:
            if left <= 0:
                return
            left -= len(document.text.encode())
        yield document


def sides(plan: Corpus, seed: int) -> tuple[Iterator[Document], Iterator[Document]]:
    """Return the documents to train on and those held out."""
    if len(list(islice(documents(plan), FEW))) < FEW:
        few = list(documents(plan))
        return corpus.cut(few, plan.holdout, tail=False), corpus.cut(few, plan.holdout, tail=True)
    return corpus.split(lambda: documents(plan), plan.holdout, seed)


def prepare_data(run: Run, recipe: Recipe, say: Say = log.info) -> Tokenizer:
    """Make the run's tokenizer and shards where they are missing; return the tokenizer.

    The corpus is read only for what is missing: a run goes on when its corpus is gone.
    """
    _sweep(run)
    tokenizer = _tokenizer(run, recipe, say)
    missing = [folder for folder in (run.train, run.heldout) if not folder.exists()]
    found = zip((run.train, run.heldout), sides(recipe.corpus, recipe.seed), strict=True) if missing else ()
    for folder, documents in found:
        if folder in missing:
            shards = build(documents, tokenizer, folder)
            name = "training" if folder == run.train else "held-out"
            say(
                f"{name} text: {shards.documents:,} documents, {shards.text_bytes / 1e6:.1f} MB, "
                f"{shards.tokens:,} tokens ({shards.text_bytes / shards.tokens:.2f} bytes each)"
            )
    return tokenizer


def _sweep(run: Run) -> None:
    """Remove what killed preparations left half-made."""
    for left in (*run.folder.glob(".tokenizer.*"), *run.train.parent.glob(".*.partial-*")):
        shutil.rmtree(left, ignore_errors=True)


def _tokenizer(run: Run, recipe: Recipe, say: Say) -> Tokenizer:
    if run.tokenizer.exists():
        return Tokenizer.load(run.tokenizer)
    plan = recipe.tokenizer
    if plan.path is not None:
        made = Tokenizer.load(plan.path)
        say(f"tokenizer: {plan.path}, {made.vocab_size:,} pieces")
    else:
        learn, _ = sides(recipe.corpus, recipe.seed)
        marks = dict.fromkeys((*SPECIALS, *recipe.objective.marks))
        made = train(_sample(learn, plan.sample), plan.type, plan.size, tuple(marks))
        say(f"tokenizer: {plan.type} trained on the corpus, {made.vocab_size:,} pieces")
    partial = run.tokenizer.with_name(f".tokenizer.{os.getpid()}")
    try:
        made.save(partial)
        partial.rename(run.tokenizer)
    except OSError as error:
        raise TerakoyaError(str(run.tokenizer), f"cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made


def _sample(found: Iterator[Document], size: int) -> Iterator[str]:
    for document in found:
        if size <= 0:
            return
        size -= len(document.text.encode())
        yield document.text
