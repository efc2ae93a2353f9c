"""Reversible layers: the same numbers and gradients as layers that keep everything, from less memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from terakoya.model import spec
from terakoya.model.build import build, initialise
from terakoya.model.context import Packed
from terakoya.model.model import Block, Model
from terakoya.model.spec_sparse import Lsh
from terakoya.ops import lsh


def reformer(depth: int) -> Model:
    blocks = (spec.pre(spec.LayerNorm(), Lsh(2, buckets=4, rounds=2, chunk=8), spec.MLP(64, bias=True)),)
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
    return model.norm((a + b) / 2)


def test_gradients_are_those_of_layers_that_keep_everything() -> None:
    model, tokens, ctx = reformer(4), torch.arange(90) % 50, Packed([60, 30])
    weights = [p for p in model.parameters() if p.requires_grad]
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
def test_hashed_attention_is_that_of_transformers(rounds: int) -> None:
    """The same directions, so the same buckets; a chunk that has none before it is left out of the comparison.

    transformers lays the rounds end to end in a ring: the first chunk of each sees the last of the round before. Ours
    sees itself alone there. All other tokens, and a text of one chunk, are equal.
    """
    pytest.importorskip("transformers")
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    heads, width, tokens, chunk, buckets = 2, 8, 96, 8, 6
    theirs = LSHSelfAttention(
        ReformerConfig(
            hidden_size=heads * width, num_attention_heads=heads, attention_head_size=width, num_buckets=buckets,
            num_hashes=rounds, lsh_attn_chunk_length=chunk, lsh_num_chunks_before=1, lsh_num_chunks_after=0,
            lsh_attention_probs_dropout_prob=0.0, hash_seed=0, is_decoder=True, attn_layers=["lsh"],
            axial_pos_embds=False,
        )
    ).double().eval()  # fmt: skip
    torch.manual_seed(0)  # what they draw the directions with
    turns = torch.randn(heads, width, rounds, buckets // 2, dtype=torch.float64).permute(2, 0, 1, 3)
    x = torch.randn(tokens, heads * width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    qk, v = (w(x).unflatten(-1, (heads, width)) for w in (theirs.query_key, theirs.value))
    ours, want = lsh.attend(qk, v, turns, chunk), theirs(x[None]).hidden_states[0].unflatten(-1, (heads, width))
    order = (lsh.hashed(qk.transpose(0, 1), turns) * tokens + torch.arange(tokens)).argsort(-1)  # (rounds, H, T)
    whole = torch.ones(heads, tokens, dtype=torch.bool)
    for first in order[..., :chunk]:
        whole.scatter_(1, first, False)
    assert whole.float().mean() > 0.7
    assert torch.allclose(ours.transpose(0, 1)[whole], want.transpose(0, 1)[whole], atol=1e-10)
    short = lsh.attend(qk[:chunk], v[:chunk], turns, chunk).flatten(1)
    assert torch.allclose(short, theirs(x[None, :chunk]).hidden_states[0], atol=1e-10)
