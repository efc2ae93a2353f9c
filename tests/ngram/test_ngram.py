"""Kneser-Ney against a dictionary that follows the paper's formulas, and the laws that every language model keeps."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from terakoya.device import Device
from terakoya.engine.generate import complete
from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError
from terakoya.eval.perplexity import score
from terakoya.model.context import Memory, Packed
from terakoya.models import open_model
from terakoya.ngram import folder
from terakoya.ngram.counts import count
from terakoya.ngram.model import NGram, levels_of, tensors
from terakoya.ngram.run import NGramRecipe, evaluate
from terakoya.ngram.smooth import Discounts, Smoothing, discounts
from terakoya.train import loop
from terakoya.train.recipe import Rows
from tests.cli.conftest import Terakoya, corpus, quick, say, terakoya  # noqa: F401 - fixtures

Gram = tuple[int, ...]
VOCAB = 7


def texts(seed: int, documents: int = 6, longest: int = 40, vocab: int = VOCAB) -> list[list[int]]:
    rng = random.Random(seed)
    return [
        [min(rng.randrange(vocab), rng.randrange(vocab)) for _ in range(rng.randint(1, longest))]
        for _ in range(documents)
    ]


def counted(documents: list[list[int]], order: int, smoothing: Smoothing = "modified", vocab: int = VOCAB) -> NGram:
    flat = np.array([t for d in documents for t in d])
    starts = np.cumsum([0, *(len(d) for d in documents)])
    return NGram(count(flat, starts, vocab, order), smoothing)


class Plain:
    """The definition, one dictionary at a time; the discounts are taken over, they have a test of their own."""

    def __init__(self, documents: list[list[int]], order: int, cuts: list[Discounts], vocab: int = VOCAB) -> None:
        self.vocab, self.cuts, self.counts = vocab, cuts, list[dict[Gram, int]]()
        for k in range(1, order + 1):
            left: dict[Gram, set[object]] = defaultdict(set)
            times: dict[Gram, int] = defaultdict(int)
            for n, d in enumerate(documents):
                for i in range(len(d) - k + 1):
                    gram = tuple(d[i : i + k])
                    times[gram] += 1
                    left[gram].add(("start", n) if i == 0 else d[i - 1])
            self.counts.append(times if k == order else {g: len(s) for g, s in left.items()})

    def p(self, context: Gram, token: int) -> float:
        if len(context) >= len(self.counts):
            context = context[len(context) - len(self.counts) + 1 :]
        counts, cut = self.counts[len(context)], self.cuts[len(context)]
        lower = self.p(context[1:], token) if context else 1 / self.vocab
        total = sum(counts.get((*context, w), 0) for w in range(self.vocab))
        if not total:
            return lower
        off = lambda c: 0.0 if c == 0 else cut.one if c == 1 else cut.two if c == 2 else cut.more
        own = counts.get((*context, token), 0)
        gamma = sum(off(counts.get((*context, w), 0)) for w in range(self.vocab)) / total
        return (own - off(own)) / total + gamma * lower


def probabilities(model: NGram, ids: list[int]) -> torch.Tensor:
    return model.head(model(torch.tensor(ids), Packed([len(ids)]))).exp()


@pytest.mark.parametrize("smoothing", ["modified", "plain"])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_every_probability_is_the_definitions(order: int, smoothing: Smoothing) -> None:
    for seed in range(4):
        documents = texts(seed)
        model = counted(documents, order, smoothing)
        plain = Plain(documents, order, model.discounts)
        ids = [t for d in texts(100 + seed, 2, 20) for t in d]
        found = probabilities(model, ids)
        wanted = [
            [plain.p(tuple(ids[max(0, i - order + 2) : i + 1]) if order > 1 else (), w) for w in range(VOCAB)]
            for i in range(len(ids))
        ]
        torch.testing.assert_close(found, torch.tensor(wanted), rtol=2e-6, atol=0)


def test_a_case_by_hand() -> None:
    # a b a c | a b      (a=0 b=1 c=2, d=3 never seen); bigrams: ab 2, ba 1, ac 1
    # n1 = 2, n2 = 1, so D = 2 / (2 + 2) = 1/2 for bigrams.
    # Left neighbours: a {start, start, b} = 3, b {a} = 1, c {a} = 1; n1 = 2, n2 = 0: too few to tell, D = 1/2.
    model = counted([[0, 1, 0, 2], [0, 1]], 2, "plain", vocab=4)
    assert [(d.one, d.guessed) for d in model.discounts] == [(0.5, True), (0.5, False)]
    left = Fraction(3, 2) / 5  # what three discounts of 1/2 leave for the uniform distribution, of 5
    alone = [Fraction(5, 2) / 5 + left / 4, Fraction(1, 2) / 5 + left / 4, Fraction(1, 2) / 5 + left / 4, left / 4]
    gamma = Fraction(1, 3)  # after a: two kinds of 1/2, of 3
    after_a = [
        gamma * alone[0],
        Fraction(3, 2) / 3 + gamma * alone[1],
        Fraction(1, 2) / 3 + gamma * alone[2],
        gamma * alone[3],
    ]
    wanted = torch.tensor([[float(p) for p in after_a], [float(p) for p in alone]])
    torch.testing.assert_close(probabilities(model, [0, 2]), wanted, rtol=1e-6, atol=0)  # nothing ever followed c


def test_discounts_are_those_of_the_paper() -> None:
    counts = np.repeat([0, 1, 2, 3, 4, 9], [5, 40, 20, 12, 8, 3])
    y = 40 / (40 + 2 * 20)
    assert discounts(counts, "modified") == Discounts(1 - 2 * y * 20 / 40, 2 - 3 * y * 12 / 20, 3 - 4 * y * 8 / 12)
    assert discounts(counts, "plain") == Discounts(y, y, y)
    assert discounts(np.array([1, 1, 1]), "modified") == Discounts(0.5, 1.0, 1.5, guessed=True)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_sum_to_one_after_anything(order: int) -> None:
    for seed in range(20):
        model = counted(texts(seed, 5, 60), order)
        total = probabilities(model, texts(seed + 50, 1, 60)[0]).sum(-1)
        torch.testing.assert_close(total, torch.ones(len(total)), rtol=0, atol=2e-6)


def test_single_targets_are_those_of_the_whole_distribution() -> None:
    model = counted(texts(3), 4)
    ids, targets = torch.tensor(texts(8, 1)[0]), torch.tensor(texts(8, 1)[0][::-1])
    hidden = model(ids, Packed([len(ids)]))
    torch.testing.assert_close(
        model.log_probabilities(hidden, targets), model.head(hidden).gather(1, targets[:, None])[:, 0]
    )


def test_packed_is_separate_and_one_by_one_is_at_once() -> None:
    model = counted(texts(5), 4)
    a, b = texts(11, 2, 30)
    packed = model(torch.tensor(a + b), Packed([len(a), len(b)]))
    assert torch.equal(packed, torch.cat([model(torch.tensor(x), Packed([len(x)])) for x in (a, b)]))
    memory, rows = Memory(2), list[torch.Tensor]()
    n = min(len(a), len(b))
    for i in range(n):
        ctx = memory.step([1, 1])
        rows.append(model(torch.tensor([a[i], b[i]]), ctx))
        ctx.close()
    both = torch.stack(rows, 1)
    assert torch.equal(both[0], packed[:n])
    assert torch.equal(both[1], packed[len(a) : len(a) + n])


def test_documents_do_not_run_into_each_other() -> None:
    joined, apart = counted([[1, 2, 1, 2, 3]], 2), counted([[1, 2, 1, 2], [3]], 2)
    assert probabilities(joined, [2])[0, 3] > 2 * probabilities(apart, [2])[0, 3]


def test_counts_survive_being_written_and_damage_is_named() -> None:
    model = counted(texts(1), 4)
    levels = count(np.array([t for d in texts(1) for t in d]), np.cumsum([0, *map(len, texts(1))]), VOCAB, 4)
    parts = tensors(levels)
    assert {t.dtype for t in parts.values()} == {torch.uint8}
    again = NGram(levels_of(parts, "x"))
    assert torch.equal(probabilities(again, texts(2)[0]), probabilities(model, texts(2)[0]))
    for name in ("3.tokens", "3.suffix", "3.first"):
        broken = parts[name].clone()
        broken[1] = 255
        with pytest.raises(TerakoyaError, match="3-grams do not fit"):
            levels_of(parts | {name: broken}, "x")
    with pytest.raises(TerakoyaError, match=r"lacks the tensor '3\.suffix'"):
        levels_of({n: t for n, t in parts.items() if n != "3.suffix"}, "x")
    with pytest.raises(TerakoyaError, match=r"ngram\.order"):
        counted(texts(1), 0)


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    base = tmp_path_factory.mktemp("ngram")
    recipe = base / "ngram.toml"
    text = (
        "ngram = { order = 3 }\ntokenizer = { size = 400 }\nrows = { count = 4, context = 32 }\n"
        f'[corpus]\nsource = "{corpus}"\nholdout = 0.1\n'
    )
    recipe.write_text(text, encoding="utf-8")
    said = say("train", recipe, "--run", base / "run")
    assert said.code == 0, said.err
    assert "held-out" in said.out
    return base / "run"


def test_the_verbs_of_networks_serve_it(trained: Path, terakoya: Terakoya) -> None:  # noqa: F811
    said = terakoya("eval", trained, "--limit", 4000)
    assert said.code == 0, said.err
    assert "bits/byte" in said.out
    answers = {terakoya("generate", trained, "寺子屋は、", "--seed", 1, "--max-tokens", 12).out for _ in range(2)}
    assert len(answers) == 1
    assert len(answers.pop()) > 5
    again = terakoya("train", trained)
    assert again.code == 0
    assert "counted" not in again.out  # what is there is used
    for words in (["ngram.order=99"], ["ngram.ordr=2"]):
        bad = terakoya("train", trained.parent / "ngram.toml", *words, "--run", "new")
        assert (bad.code, bad.err.count("\n")) == (2, 1)
        assert "tokenizer" not in bad.out  # told before anything is read
        assert not Path("new").exists()


def test_what_counts_are_not_written_for_others(trained: Path, terakoya: Terakoya) -> None:  # noqa: F811
    for words in (["convert", trained, "out"], ["convert", trained, "out.gguf", "--to", "gguf"],
                  ["quantize", trained, "--to", "int8", "--no-speed"]):  # fmt: skip
        said = terakoya(*words)
        assert (said.code, said.err.count("\n")) == (2, 1), said.err
        assert "other programs do not know" in said.err or "no weights to pack" in said.err
        assert not Path("out").exists() and not Path("out.gguf").exists()


def test_it_is_scored_as_networks_are(trained: Path) -> None:
    loaded = open_model(str(trained))
    model, tokenizer = folder.open_ngram(trained / "steps" / "step-00000001" / "model")
    assert loaded.tokenizer is not None
    shards = loop.Shards.open(trained / "data" / "heldout")
    ours = evaluate(model, shards, Rows(4, 32))
    assert ours == pytest.approx(loop.evaluate(loaded.model, shards, Rows(4, 32), Device("cpu", "fp32")), rel=1e-6)
    text = "寺子屋は学校である。👩‍👩‍👧 ｶﾅ"
    found = score(model, tokenizer, [text])
    assert found.bytes <= len(text.encode())
    assert 0 < found.bits_per_byte < math.inf
    done = complete(model, tokenizer, tokenizer.encode(text), Sampling(max_tokens=5, seed=3))
    assert done.tokens <= 5


def test_more_context_helps(trained: Path) -> None:
    shards = loop.Shards.open(trained / "data" / "train")
    text, starts = shards.slice(0, shards.tokens), np.asarray(shards.starts)
    bits = [evaluate(NGram(count(text, starts, len(shards.token_bytes), n)), shards, Rows(4, 32)) for n in (1, 2, 3)]
    assert bits[0] > bits[1] + 0.5 > bits[2]


def test_recipe_is_toml(tmp_path: Path) -> None:
    from terakoya import config

    (tmp_path / "r.toml").write_text(config.dump(NGramRecipe()), encoding="utf-8")
    assert config.load_file(NGramRecipe, tmp_path / "r.toml") == NGramRecipe()
