"""One log-probability pass, for every method: only the tokens that count, a few at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from terakoya.data.batch import Batch
from terakoya.model.model import Head, Model
from terakoya.train.objective import Outcome, context_of, cross_entropy

CHUNK = 2**23  # logits held at once: 32 MiB in fp32


def answers(model: Model, batch: Batch) -> Outcome:
    """Predict the targets that count, and spend no head on the others: Σ w · -log p(target | past)."""
    counted = batch.weights != 0
    hidden = model(batch.tokens, context_of(batch))
    if bool(counted.all()):
        return Outcome(cross_entropy(model, hidden, batch.targets, batch.weights))
    return Outcome(cross_entropy(model, hidden[counted], batch.targets[counted], batch.weights[counted]))


def token_scores(model: Model, batch: Batch, *, temperature: float = 1.0, vocab: int | None = None) -> Tensor:
    """Return log p(target | past) of every target that counts: -> (sum of weights != 0,).

    `vocab` leaves out rows of the head that the tokenizer has no token for, as sampling does.
    """
    counted = batch.weights != 0
    hidden = model(batch.tokens, context_of(batch))[counted]
    return targets_of(model.head, hidden, batch.targets[counted], temperature, vocab)


def targets_of(
    head: Head, hidden: Tensor, targets: Tensor, temperature: float = 1.0, vocab: int | None = None
) -> Tensor:
    """Score targets (N,) from hidden (N, D), CHUNK logits at a time, forward and backward -> (N,)."""

    def part(h: Tensor, t: Tensor) -> Tensor:
        logits = head(h)[:, :vocab]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return -F.cross_entropy(logits / temperature if temperature != 1.0 else logits, t, reduction="none")

    size = _size(head)
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    if torch.is_grad_enabled() and hidden.requires_grad:
        return torch.cat([checkpoint(part, h, t, use_reentrant=False) for h, t in chunks])
    return torch.cat([part(h, t) for h, t in chunks])


def mixtures_of(head: Head, hidden: Tensor, ids: Tensor, logp: Tensor, temperature: float) -> Tensor:
    """Return Σ_k p_k (log p_k - log q(ids_k)) of every row: hidden (N, D), ids and logp (N, K) -> (N,)."""

    def part(h: Tensor, i: Tensor, p: Tensor) -> Tensor:
        q = torch.log_softmax(head(h).float() / temperature, -1).gather(-1, i)
        return (p.exp() * (p - q)).sum(-1)

    size = _size(head)
    chunks = zip(hidden.split(size), ids.split(size), logp.split(size), strict=True)
    if torch.is_grad_enabled() and hidden.requires_grad:
        return torch.cat([checkpoint(part, h, i, p, use_reentrant=False) for h, i, p in chunks])
    return torch.cat([part(h, i, p) for h, i, p in chunks])


def pieces(batch: Batch) -> Tensor:
    """Return which piece each target that counts belongs to: -> (sum of weights != 0,)."""
    lengths = batch.cu.diff().long()
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return owner[batch.weights != 0]


def sums(scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Add token scores up by piece: -> (log p of each piece's answer (N,), its count of tokens (N,))."""
    owner, count = pieces(batch), len(batch.cu) - 1
    total = scores.new_zeros(count).index_add(0, owner, scores)
    return total, torch.bincount(owner, minlength=count).to(scores.dtype)


def _size(head: Head) -> int:
    assert head.weight is not None, "who scores words has a head"
    return max(1, CHUNK // head.weight.shape[0])
