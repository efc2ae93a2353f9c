"""Reversible layers: the same numbers and gradients as layers that keep everything, from less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import build, initialise
from terakoya.model.context import Packed
from terakoya.model.model import Block, Model
from terakoya.model.position import Axial
from terakoya.model.spec_sparse import Lsh
from terakoya.ops import lsh
from terakoya.ops.attend import Look, attend, naive, visible
from terakoya.zoo.convert import load
from tests.zoo.reference import REFORMER, TINY, mended, prompt


def reformer(depth: int) -> Model:
    blocks = (spec.pre(spec.LayerNorm(), Lsh(2, rounds=2, chunk=8, buckets=(4,)), spec.MLP(64, bias=True)),)
    s = spec.Model(vocab=50, dim=16, depth=depth, context=512, blocks=blocks, reversible=True)
    return initialise(build(s), 0).double()


def plain(model: Model, tokens: Tensor, ctx: Packed) -> Tensor:
    a = b = model.embed(tokens, ctx)
    for layer in model.layers:
        assert isinstance(layer, Block)
        _, f, g = layer.halves(ctx)
        a = a + f(b)
        b = b + g(a)
    assert model.norm is not None
    return model.norm(torch.cat([a, b], -1))


def test_gradients_are_those_of_layers_that_keep_everything() -> None:
    model, tokens, ctx = reformer(4), torch.arange(90) % 50, Packed([60, 30])
    weights = [p for name, p in model.named_parameters() if not name.startswith("head.")]
    got, want = model(tokens, ctx), plain(model, tokens, ctx)
    assert torch.allclose(got, want, atol=1e-12)
    slope = torch.randn(got.shape, generator=torch.Generator().manual_seed(0), dtype=got.dtype)
    pairs = zip(torch.autograd.grad(got, weights, slope), torch.autograd.grad(want, weights, slope), strict=True)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in pairs)


def test_nothing_is_kept_between_the_layers() -> None:
    """Bytes that autograd saves do not grow with depth, where those of ordinary layers do."""

    def kept(depth: int, reverse: bool) -> int:
        model, tokens, ctx = reformer(depth), torch.arange(64) % 50, Packed([64])
        own = {p.data_ptr() for p in model.parameters()}
        seen: dict[int, int] = {}

        def keep(t: Tensor) -> Tensor:
            if t.data_ptr() not in own:
                seen[t.data_ptr()] = t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = model(tokens, ctx) if reverse else plain(model, tokens, ctx)
        assert y.requires_grad
        return sum(seen.values())

    assert kept(8, True) <= 1.1 * kept(2, True)
    assert kept(8, False) > 3 * kept(2, False)
    assert kept(8, True) < kept(8, False) / 10


@pytest.mark.parity
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("factors", [(6,), (2, 4)])
def test_hashed_attention_is_that_of_transformers(rounds: int, factors: tuple[int, ...]) -> None:
    """The same directions, so the same buckets, and rounds in a ring: every token is equal, and a text of one chunk."""
    pytest.importorskip("transformers")
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    heads, width, tokens, chunk = 2, 8, 96, 8
    theirs = LSHSelfAttention(
        ReformerConfig(
            hidden_size=heads * width, num_attention_heads=heads, attention_head_size=width, num_buckets=list(factors),
            num_hashes=rounds, lsh_attn_chunk_length=chunk, lsh_num_chunks_before=1, lsh_num_chunks_after=0,
            lsh_attention_probs_dropout_prob=0.0, hash_seed=0, is_decoder=True, attn_layers=["lsh"],
            axial_pos_embds=False,
        )
    ).double().eval()  # fmt: skip
    torch.manual_seed(0)  # what they draw the directions with
    turns = torch.randn(heads, width, rounds, sum(factors) // 2, dtype=torch.float64).permute(2, 0, 1, 3)
    x = torch.randn(tokens, heads * width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    qk, v = (w(x).unflatten(-1, (heads, width)) for w in (theirs.query_key, theirs.value))
    ours = lsh.attend(qk, v, turns, chunk, factors)
    assert torch.allclose(ours.flatten(1), theirs(x[None]).hidden_states[0], atol=1e-10)
    short = lsh.attend(qk[:chunk], v[:chunk], turns, chunk, factors).flatten(1)
    assert torch.allclose(short, theirs(x[None, :chunk]).hidden_states[0], atol=1e-10)


@pytest.mark.parity
@pytest.mark.parametrize("length", [3, 5, 12, 17, 40])
def test_several_rounds_give_their_logits(length: int, tmp_path: Path) -> None:
    """In double precision: where a token sees nothing but itself, theirs weighs rounds by numbers near -1e5, of which
    single precision has few. Chunks of 6 and 4: what is filled up to twelves is part of the ring.
    """
    pytest.importorskip("transformers")
    from transformers import ReformerConfig, ReformerModelWithLMHead

    more = {"local_attn_chunk_length": 6, "lsh_attn_chunk_length": 4, "num_hashes": 3}
    torch.manual_seed(5)
    theirs = mended(ReformerModelWithLMHead(ReformerConfig(**(TINY | REFORMER | more)))).double().eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    save_file(
        {k: v for k, v in theirs.state_dict().items() if k != "lm_head.decoder.bias"}, tmp_path / "model.safetensors"
    )
    theirs.config.save_pretrained(tmp_path)
    ours, x = load(tmp_path, dtype=torch.float64).model, prompt(length)
    with torch.no_grad():
        assert torch.allclose(ours.head(ours(x, Packed([length]))), theirs(x[None]).logits[0], atol=1e-9)


@pytest.mark.parity
def test_a_model_that_fills_gaps_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import ReformerConfig

    ReformerConfig(**(TINY | REFORMER | {"is_decoder": False}), architectures=["ReformerForMaskedLM"]).save_pretrained(
        tmp_path
    )
    with pytest.raises(TerakoyaError, match="is_decoder"):
        load(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("chunk", [4, 64])
@pytest.mark.parametrize("chunks", [1, 2, 3, 31, 64, 65, 100, 1024])
def test_buckets_by_the_length_are_those_of_transformers(chunk: int, chunks: int) -> None:
    pytest.importorskip("transformers")
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    for context in (64, 4096, 524_288):
        theirs = LSHSelfAttention(ReformerConfig(lsh_attn_chunk_length=chunk, max_position_embeddings=context))
        theirs._set_num_buckets(chunk * chunks)
        want = theirs.num_buckets
        assert lsh.factors_for(chunk * chunks, chunk, context) == (tuple(want) if isinstance(want, list) else (want,))


@pytest.mark.parametrize("tokens", [7, 64, 530])
def test_local_attention_is_the_masked_definition(tokens: int) -> None:
    rng = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(2, tokens, 3, 8, generator=rng, dtype=torch.float64) for _ in range(3))
    look = Look(0.3, near=16)
    want = naive(q, k, v, look)
    assert torch.allclose(attend(q, k, v, look), want, atol=1e-12)
    seen = visible(torch.arange(tokens), torch.arange(tokens), look)
    assert seen.sum(1)[:40].tolist() == [p % 16 + 1 + (16 if p >= 16 else 0) for p in range(min(tokens, 40))]
    last = attend(q[:, -1:], k, v, look, tokens - 1)
    assert torch.allclose(last, want[:, -1:], atol=1e-12)


def test_positions_are_rows_and_columns() -> None:
    place = Axial(spec.Axial(3, 5, 2), 8)
    with torch.no_grad():
        place.rows.copy_(torch.arange(6.0).view(3, 1, 2))
        place.columns.copy_(100 + torch.arange(30.0).view(1, 5, 6))
    for p in (0, 4, 5, 13):
        want = [*place.rows[p // 5, 0].tolist(), *place.columns[0, p % 5].tolist()]
        assert place(torch.tensor([p]))[0].tolist() == want
    for wrong in (spec.Axial(3, 5, 8), spec.Axial(3, 4, 2), spec.Axial(0, 5, 2)):
        with pytest.raises(TerakoyaError, match="axial"):
            wrong.check(8, 15)


def test_half_precision_has_a_number_for_oneself() -> None:
    """float16 ends at 65,504; the first token sees nothing but itself."""
    rng = torch.Generator().manual_seed(0)
    qk, v = (torch.randn(40, 2, 8, generator=rng) for _ in range(2))
    turns = torch.randn(2, 2, 8, 2, generator=rng)
    for chunk in (8, 64):
        got = lsh.attend(qk.half(), v.half(), turns.half(), chunk)
        assert got.isfinite().all()
        assert torch.allclose(got[0].float(), v[0], atol=0.01)
