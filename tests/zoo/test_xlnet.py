"""XLNet's two streams against transformers, in random orders; Transformer-XL's memory against the paper's formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from terakoya.config import override
from terakoya.model.build import build, initialise
from terakoya.model.context import Memory, Packed
from terakoya.train.objectives.sight import Masked
from terakoya.zoo import lineage
from tests.zoo.paired import TOLERANCE, pair, prompt


def test_two_streams_in_any_order_equal_transformers() -> None:
    """Queries stand behind the words, at the places of what they guess, and see what comes before it in the order."""
    pytest.importorskip("transformers", reason="needs terakoya[reference]")
    theirs, ours, _ = pair("xlnet")
    x, n = prompt(11, 7), 11
    for seed in range(3):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        rank = order.argsort()
        hidden = rank[:, None] <= rank[None, :]  # i cannot see j where j comes at or after i
        at = order[-4:]
        with torch.no_grad():
            want = theirs(x[None], perm_mask=hidden[None].float(), target_mapping=F.one_hot(at, n)[None].float())
            sees = ~hidden
            mask = torch.zeros(n + 4, n + 4, dtype=torch.bool)
            mask[:n, :n], mask[n:, :n] = sees | torch.eye(n, dtype=torch.bool), sees[at]
            ctx = Masked([0, n + 4], torch.cat([torch.arange(n), at]), [mask])
            model = ours.model
            asks = model.embed.asks.expand(1, 4, -1)[0]
            got = model.head(model.read(torch.cat([model.embed.token(x), asks]), ctx))[n:]
        assert (got - want.logits[0]).abs().max() <= TOLERANCE


def naive(model, x: torch.Tensor, memories: list[torch.Tensor], keep: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One segment by the paper's equations (Dai 2019, §3.3): hidden states of the last segment are remembered."""
    h, out = model.embed.token(x), []
    for block, past in zip(model.layers, memories, strict=True):
        both = torch.cat([past, h])
        out.append(both[-keep:])
        a = block.attn
        H, K = a.spec.heads, a.width
        q, k, v = a.q(h).view(-1, H, K), a.k(both).view(-1, H, K), a.v(both).view(-1, H, K)
        scores = torch.full((H, len(h), len(both)), float("-inf"))
        u, w = model.relative.u, model.relative.w
        for i in range(len(h)):
            for j in range(len(past) + i + 1):
                gap = len(past) + i - j
                angle = gap / 10_000 ** (torch.arange(0, model.spec.dim, 2) / model.spec.dim)
                r = a.position.r(torch.cat([angle.sin(), angle.cos()])).view(H, K)
                scores[:, i, j] = ((q[i] + u) * k[j] + (q[i] + w) * r).sum(-1) / math.sqrt(K)
        y = torch.einsum("hij,jhk->ihk", scores.softmax(-1), v).flatten(1)
        h = block.attn_out(h + a.o(y))
        h = block.mlp_out(h + block.mlp.down(F.relu(block.mlp.up(h))))
    return h, out


@pytest.mark.parametrize("keep", [5, 100], ids=["short memory", "long memory"])
def test_segments_equal_the_papers_formulas(keep: int) -> None:
    s = override(lineage.rescale(lineage.base("transformer-xl"), 32, 2, 16), {"vocab": 50, "context": 64})
    model = initialise(build(s), 0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        x = torch.randint(0, 50, (18,), generator=torch.Generator().manual_seed(1))
        memory, past = Memory(), [torch.zeros(0, 32)] * 2
        for segment in x.split(6):
            ctx = memory.step([6])
            got = model(segment, ctx)
            ctx.close()
            memory.keep(keep)
            want, past = naive(model, segment, past, keep)
            assert (got - want).abs().max() < 2e-5
        whole = model(x, Packed([18]))[-6:]
        assert ((got - whole).abs().max() < 2e-5) == (keep == 100)


def test_permutation_learning_asks_with_the_models_own_vector() -> None:
    """XLNet's query is its `asks`, not the row of [MASK]: only the one gets a gradient from asking."""
    from terakoya.train.objectives import Permute
    from tests.train.objective_fakes import some, tokenizer

    words = tokenizer()
    s = override(lineage.rescale(lineage.base("xlnet"), 32, 2, 16), {"vocab": words.vocab_size, "context": 64})
    model = initialise(build(override(s, {"head.tied": False})), 0)
    task = Permute(share=0.5).task(words, model.spec, 0)
    task.loss(model, task.arrange(some(), 0)).loss.backward()
    assert model.embed.asks is not None
    assert model.embed.asks.grad is not None
    assert model.embed.asks.grad.any()
    assert model.embed.token.weight.grad is not None
    assert not model.embed.token.weight.grad[words.specials["[MASK]"]].any()
