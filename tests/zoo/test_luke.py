"""LUKE against transformers: words and entities, with and without queries of their own, packed, and its files."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from terakoya.config import override
from terakoya.model.build import build, initialise
from terakoya.model.context import Packed
from terakoya.model.entities import Mentioned, Mentions
from terakoya.zoo import convert, lineage
from tests.zoo.paired import TOLERANCE

WORDS, ENTITIES = 11, 3
AT = [[1, 2, 3], [5], [2, 7]]  # the words of each entity
NAMED = [word for words in AT for word in words]


@functools.cache
def pair(name: str) -> tuple[Any, convert.Loaded, Path]:
    transformers = pytest.importorskip("transformers", reason="needs terakoya[reference]")
    torch.manual_seed(5)
    more: dict[str, Any] = {
        "luke": {"type_vocab_size": 2},
        "luke-plain": {"use_entity_aware_attention": False, "entity_emb_size": 48},
        "luke-bare": {"type_vocab_size": 2},
    }[name]
    config = transformers.LukeConfig(
        vocab_size=99, entity_vocab_size=37, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=80, max_position_embeddings=64, pad_token_id=1, **({"entity_emb_size": 24} | more),
    )  # fmt: skip
    config._attn_implementation = "eager"
    theirs = (transformers.LukeModel if name == "luke-bare" else transformers.LukeForMaskedLM)(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * 0.08 if p.dim() > 1 else p + 0.2 * torch.randn_like(p))
    folder = Path(tempfile.mkdtemp()) / name
    theirs.save_pretrained(folder)
    return theirs, convert.load(folder), folder


def asked() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(3, 99, (WORDS,), generator=rng), torch.randint(1, 37, (ENTITIES,), generator=rng)


def mentions(ids: torch.Tensor, start: int = WORDS) -> Mentions:
    owner = [i for i, words in enumerate(AT) for _ in words]
    return Mentions(torch.arange(start, start + len(ids)), ids, torch.tensor(NAMED), torch.tensor(owner))


def places() -> torch.Tensor:
    wide = max(map(len, AT))
    return torch.tensor([[*words, *[-1] * (wide - len(words))] for words in AT])


def read(model: Any, words: torch.Tensor, ids: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
    ctx = Mentioned([WORDS + ENTITIES], None, mentions(ids), segments=segments)
    with torch.no_grad():
        return model(torch.cat([words, torch.zeros_like(ids)]), ctx)


def near(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= TOLERANCE * max(1.0, want.std().item())


@pytest.mark.parity
@pytest.mark.parametrize("name", ["luke", "luke-plain", "luke-bare"])
def test_words_and_entities(name: str) -> None:
    theirs, ours, _ = pair(name)
    words, ids = asked()
    segments = torch.zeros(WORDS + ENTITIES, dtype=torch.long)
    segments[6:WORDS] = segments[-1] = 1 if ours.spec.embed.types > 1 else 0
    with torch.no_grad():
        out = theirs(
            words[None], token_type_ids=segments[None, :WORDS], entity_ids=ids[None],
            entity_position_ids=places()[None], entity_token_type_ids=segments[None, WORDS:],
        )  # fmt: skip
    hidden = read(ours.model, words, ids, segments)
    if name == "luke-bare":
        assert ours.model.entities is None
        near(hidden[:WORDS], out.last_hidden_state[0])
        near(hidden[WORDS:], out.entity_last_hidden_state[0])
        assert ours.model.pool is not None
        near(ours.model.pool(hidden, Packed([WORDS + ENTITIES])), out.pooler_output)
    else:
        assert ours.model.entities is not None
        near(ours.model.head(hidden[:WORDS]), out.logits[0])
        near(ours.model.entities(hidden[WORDS:]), out.entity_logits[0])


@pytest.mark.parity
def test_without_entities_it_reads_words_alone() -> None:
    theirs, ours, _ = pair("luke")
    words, _ = asked()
    with torch.no_grad():
        near(ours.model.head(ours.model(words, Packed([WORDS]))), theirs(words[None]).logits[0])


@pytest.mark.parity
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padded_equals_packed(left: bool) -> None:
    """Two texts of other lengths side by side, one of them without its third entity."""
    theirs, ours, _ = pair("luke")
    a, ids = asked()
    b, pad = a[:8].flip(0), torch.full((WORDS - 8,), 1)
    batch = torch.stack([a, torch.cat([pad, b] if left else [b, pad])])
    kept = torch.ones(2, ENTITIES, dtype=torch.long)
    kept[1, 2] = 0
    with torch.no_grad():
        out = theirs(
            batch, attention_mask=(batch != 1).long(), entity_ids=torch.stack([ids, ids]), entity_attention_mask=kept,
            entity_position_ids=torch.stack([places(), places()]),
        )  # fmt: skip
        at = torch.tensor([11, 12, 13, 22, 23])
        words = torch.tensor([*NAMED, *AT[0], *AT[1]])
        owner = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 4])
        both = Mentions(at, torch.cat([ids, ids[:2]]), words, owner)
        zero = torch.zeros_like(ids)
        hidden = ours.model(torch.cat([a, zero, b, zero[:2]]), Mentioned([14, 10], None, both))
    near(ours.model.head(hidden[:11]), out.logits[0])
    near(ours.model.head(hidden[14:22]), out.logits[1, 3:] if left else out.logits[1, :8])
    assert ours.model.entities is not None
    near(ours.model.entities(hidden[22:]), out.entity_logits[1, :2])


@pytest.mark.parity
@pytest.mark.parametrize("name", ["luke", "luke-plain", "luke-bare"])
def test_files_both_ways(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    theirs, ours, folder = pair(name)
    assert ours.family == "luke"
    want, got = load_file(folder / "model.safetensors"), convert.tensors(ours.model, ours.family)
    twice = lineage.copies("luke")
    assert got.keys() == want.keys() - twice.keys()
    assert all(torch.equal(got[k], want[k]) for k in got)
    convert.save(convert.Loaded(ours.model, None, ours.family), tmp_path)
    assert convert.load(tmp_path).spec == ours.spec
    opened = type(theirs).from_pretrained(tmp_path, attn_implementation="eager")
    words, ids = asked()
    with torch.no_grad():
        was, is_ = (
            m(words[None], entity_ids=ids[None], entity_position_ids=places()[None])[0] for m in (theirs, opened)
        )
    assert torch.allclose(was, is_, atol=1e-6)


def test_every_weight_learns_from_words_and_entities() -> None:
    s = override(lineage.rescale(lineage.base("luke"), 32, 2, 16), {"vocab": 50, "context": 40, "entities.count": 9})
    model = initialise(build(s), 0)
    ids, words = torch.tensor([4, 5, 6]), torch.arange(10, 10 + WORDS)
    hidden = model(torch.cat([words, torch.zeros_like(ids)]), Mentioned([WORDS + 3], None, mentions(ids)))
    assert model.entities is not None
    assert model.pool is not None
    loss = model.head(hidden[:WORDS]).logsumexp(-1).sum() + model.entities(hidden[WORDS:]).logsumexp(-1).sum()
    (loss + model.pool(hidden, Packed([WORDS + 3])).sum()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name
