"""Recipes: out and in, names and dials, and one line for every mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from terakoya import config
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import build
from terakoya.train.optim import AdamW, Muon
from terakoya.train.recipe import Budget, Corpus, Keep, Recipe, Rows, Vocabulary, assign, load, opened, resolve
from terakoya.train.schedule import Constant, Cosine
from terakoya.zoo import lineage

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = [
    Recipe(),
    Recipe(model=lineage.sized("gpt2/nano"), family="gpt2", optim=AdamW(lr=3e-4), schedule=Cosine(), clip=None),
    Recipe(budget=Budget(minutes=2.5), corpus=Corpus("物語/寺子屋 \"本\"", 0.1, 10**6), depth=3),
    Recipe(tokenizer=Vocabulary("unigram", 4000, Path("a b/語彙")), schedule=Constant(0.0), optim=Muon(lr=1e-5)),
    Recipe(model="llama2/nano", rows=Rows(8, 128, 4), keep=Keep(10, 5, 3, 1000), device="cpu", seed=-3),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_out_and_in(number: int, tmp_path: Path) -> None:
    recipe, file = RECIPES[number], tmp_path / "r.toml"
    file.write_text(config.dump(recipe), encoding="utf-8")
    assert load(file) == recipe
    resolved = resolve(recipe, 500)
    assert config.load(Recipe, config.dump(resolved)) == resolved
    assert resolve(resolved, 500) == resolved, "what is resolved stays as it is"


def test_the_recipes_of_the_house_hold_together() -> None:
    others = ("tune-", "head-", "ngram", "translate", "elmo", "awd", "clip")  # recipes of other kinds
    found = [p for p in sorted((REPOSITORY / "recipes").glob("*.toml")) if not p.name.startswith(others)]
    assert found
    for path in found:
        resolved = resolve(load(path), 8192)
        assert isinstance(resolved.model, spec.Model)
        build(resolved.model, device="meta")


def test_a_named_model_opens_under_a_path() -> None:
    recipe = assign(Recipe(model="llama2/nano"), ["model.depth=3", "attention.kv_heads=2", "model.rope.theta=5e4"])
    assert isinstance(recipe.model, spec.Model)
    assert recipe.family == "llama2"
    expected = config.override(
        lineage.sized("llama2/nano"), {"depth": 3, "attention.kv_heads": 2, "rope.theta": 50_000.0}
    )
    assert recipe.model == expected
    assert opened(recipe) == recipe
    assert assign(recipe, ["model=gpt2/nano", "family="]).model == "gpt2/nano"


def test_order_of_assignments_is_the_order_of_time() -> None:
    assert assign(Recipe(), ["seed=1", "seed=2"]).seed == 2
    assert assign(Recipe(), ["optim.lr=0.5"]).optim == Muon(lr=0.5)
    assert assign(Recipe(), []) == Recipe()


def test_depth_is_one_dial() -> None:
    for depth in (1, 2, 5):
        resolved = resolve(Recipe(model="smollm2/micro", depth=depth), 300)
        s = resolved.model
        assert isinstance(s, spec.Model)
        assert (s.depth, s.dim, s.vocab, s.context, resolved.depth) == (depth, 64 * depth, 300, Rows().context, None)
        (attention,) = config.select(s.blocks[0], "attention")
        assert spec.head_dim(s, attention) == 64
        build(s, device="meta")
    wide = resolve(Recipe(depth=16, optim=AdamW(lr=0.01)), 300)
    assert wide.optim == AdamW(lr=0.005)  # 1024 wide: half the rate of 256
    muon = resolve(Recipe(depth=16), 300).optim
    assert muon == replace(Muon(), embed_lr=Muon().embed_lr / 2, head_lr=Muon().head_lr / 2)


def test_resolve_takes_vocabulary_and_context() -> None:
    resolved = resolve(Recipe(model="gpt2/nano", rows=Rows(context=77)), 1234)
    assert isinstance(resolved.model, spec.Model)
    assert (resolved.model.vocab, resolved.model.context, resolved.family) == (1234, 77, "gpt2")
    with pytest.raises(TerakoyaError, match="must name the family"):
        resolve(Recipe(model=lineage.sized("gpt2/nano")), 100)


def test_budget_of_one_kind_replaces_the_other() -> None:
    assert assign(Recipe(), ["budget.minutes=2"]).budget == Budget(minutes=2.0)
    assert assign(Recipe(budget=Budget(minutes=1)), ["budget.steps=7"]).budget == Budget(steps=7)
    assert assign(Recipe(), ["budget.minutes=2", "budget.steps=9"]).budget == Budget(steps=9)
    assert config.load(Recipe, "[budget]\nminutes = 0.5").budget == Budget(minutes=0.5)


def test_extends_lays_one_recipe_over_another(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("seed = 5\n[budget]\nsteps = 10\n[rows]\ncount = 3\n", encoding="utf-8")
    child = tmp_path / "child.toml"
    child.write_text('extends = "base"\n[rows]\ncontext = 9\n', encoding="utf-8")
    recipe = load(child, ["rows.count=4"])
    assert (recipe.seed, recipe.budget, recipe.rows) == (5, Budget(steps=10), Rows(4, 9))
    child.write_text('extends = "base"\n[budget]\nminutes = 1\n', encoding="utf-8")
    with pytest.raises(TerakoyaError, match=r'not steps=10, minutes=1\.0.*steps = "none"'):
        load(child)
    child.write_text('extends = "base"\n[budget]\nminutes = 1\nsteps = "none"\n', encoding="utf-8")
    assert load(child).budget == Budget(minutes=1.0)


WRONG = {
    "rows.cuont=3": r"rows\.cuont: rows has no field 'cuont'.*did you mean 'count'",
    "modle.depth=3": "did you mean 'model'",
    "model.dpeth=3": "did you mean 'depth'",
    "rows.count=0": r"rows\.count: 0 .*1 or more",
    "rows.count=viele": r"rows\.count: 'viele' .*a whole number",
    "rows.micro=17": r"rows\.micro: 17 .*at most rows\.count=8",
    "rows.context=2.5": "a whole number",
    "budget.steps=0": r"budget\.steps: 0 .*1 or more",
    "budget.steps=none": "needs either steps or minutes",
    "budget.minutes=-1": r"budget\.minutes: -1\.0 .*more than 0",
    "budget.minutes=nan": r"budget\.minutes",
    "budget.minutes=inf": r"budget\.minutes",
    "corpus.holdout=1": r"corpus\.holdout: 1\.0",
    "corpus.limit=0": r"corpus\.limit: 0",
    "tokenizer.type=bqe": "did you mean 'bpe'",
    "tokenizer.size=0": r"tokenizer\.size",
    "keep.count=0": r"keep\.count: 0 .*1 or more",
    "keep.save=-1": r"keep\.save: -1 .*0 or more",
    "optim.lr=-0.1": r"muon\.lr: -0\.1",
    "optim.lr=fast": "a number",
    "schedule.decay=1.5": r"schedule\.decay: 1\.5",
    "schedule.decay=0.99": "warmup \\+ decay must be at most 1",
    "clip=0": r"clip: 0\.0",
    "depth=0": r"depth: 0",
    "precision=fp8": r"precision: 'fp8' .*fp32",
    "compile=1": "true or false",
    "seed": "allowed: path=value",
    "rows=3": "a table with count, context, micro",
    "model.depth=0": r"model\.depth: 0",
    "model.attention.kv_heads=0": "kv_heads",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_values_are_one_line(text: str) -> None:
    with pytest.raises(TerakoyaError, match=WRONG[text]) as caught:
        assign(Recipe(), [text])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle = 'x'", r"no field 'modle'.*did you mean 'model'"),
        ("[optim]\nkind = 'adam'", r"optim\.kind: 'adam' .*adamw, muon.*did you mean 'adamw'"),
        ("[optim]\nlr = 1", r"optim\.kind.*is missing"),
        ("[rows]\ncount = 'x'", r"rows\.count: 'x' .*a whole number"),
        ("seed = ", "is not valid TOML"),
        ("[rows]\ncount = 4\nmicro = 5", r"rows\.micro: 5"),
    ],
)
def test_wrong_files_are_one_line_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(TerakoyaError, match=said) as caught:
        load(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(TerakoyaError, match="no such file"):
        load(tmp_path / "none.toml")


def test_unknown_models_name_the_nearest() -> None:
    with pytest.raises(TerakoyaError, match="did you mean 'smollm2'"):
        resolve(Recipe(model="smolm2/micro"), 300)
    with pytest.raises(TerakoyaError, match="did you mean 'micro'"):
        resolve(Recipe(model="smollm2/mikro"), 300)
