"""Attention of many sequences in one call, on the pages where their keys lie. No key is copied or gathered.

`flash` is torch's varlen_attn, for half precision on CUDA. Its kernel wants pages of 256 tokens; ours have 16. As the
pages of a sequence lie side by side wherever possible, sixteen of ours are one of its: the memory is shown to it as
overlapping pages of 256, one beginning at every page of ours. A sequence with a break elsewhere is `broken`, and is
computed by itself.

`flex` is torch's FlexAttention, for what adds to scores or hides more than the future. It looks at rows of the memory;
`Glance` says which position of which sequence a row is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask

from terakoya.engine.kinds import BLOCK, SPARE, Reach, Table
from terakoya.model.position import Single
from terakoya.ops.attend import Look, sees

WIDE = 16  # pages of ours in one of flash's
QUERIES = 128  # queries that FlexAttention takes together
assert SPARE >= WIDE  # the last wide page may hang over the end


@dataclass(frozen=True)
class Where:
    """Where the keys of N sequences lie in one group: `rows` (T,) take the new ones; what sequence n may see lies from
    position `first[n]` (N,), the beginning of a page, in the pages `table[n]` (N, P): `used[n]` (N,) of them, the new
    ones included. `page_of` (pages,) is a scratchpad for `Glance`. All are int32, but for `rows`.
    """

    rows: Tensor
    first: Tensor
    used: Tensor
    table: Tensor
    page_of: Tensor


def virtual(memory: Tensor) -> Tensor:
    """Show rows (R, G, K) as overlapping wide pages (P, 256, G, K), one from every page on."""
    step = memory.stride()
    wide = (len(memory) // BLOCK - WIDE + 1, WIDE * BLOCK, *memory.shape[1:])
    return memory.as_strided(wide, (BLOCK * step[0], *step))


def wide_table(where: Where) -> Tensor:
    """Return the table of wide pages (N, P / WIDE), in a memory of its own: the kernel refuses strides."""
    return where.table[:, ::WIDE].clone(memory_format=torch.contiguous_format)


def broken(table: Table, first: int) -> bool:
    """Say whether pages from index `first` on do not lie side by side within every wide page."""
    if table.bend <= first:
        return False
    pages = table.pages
    return any(pages[i] != pages[i - 1] + 1 for i in range(first + 1, len(pages)) if (i - first) % WIDE)


def flash(
    kernel: Callable[..., Any],
    q: Tensor,
    memory: Sequence[Tensor],
    look: Look,
    where: Where,
    table: Tensor,
    ends: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    splits: int | None,
) -> Tensor:
    """Let q (T, H, K) look at the memory, keys and values (R, G, K) -> (T, H, K).

    `table`: the `wide_table` of `where`; `ends`: where queries and keys of the sequences end in a row, (N + 1,) int32;
    `longest`: the most queries and keys of one; `splits`: into how many parts keys are cut (None: as the kernel likes;
    1: company changes no bit).
    """
    alone = longest[0] == 1 and look.window is None  # then heads that share keys become rows of one product
    return kernel(
        q,
        *(virtual(t) for t in memory),
        *ends,
        *longest,
        scale=look.scale,
        window_size=(-1, -1) if alone else (-1 if look.window is None else look.window - 1, 0),
        enable_gqa=q.shape[1] != memory[0].shape[1],
        seqused_k=where.used,
        block_table=table,
        num_splits=splits,
    )


@dataclass(frozen=True)
class Glance:
    """B sequences with T queries each, from position `start` (B,) on.

    `first` (B,), `table` (B, P), `page_of` (pages,): as in `Where`. QUERIES queries together look at the first `counts`
    (B, 1, T / QUERIES) of the pages `pages` (B, 1, T / QUERIES, P) and at no other.
    """

    start: Tensor
    first: Tensor
    table: Tensor
    page_of: Tensor
    counts: Tensor
    pages: Tensor

    def visible(self, look: Look) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Return the mask: a row of the memory must be in a page of the sequence, and be seen from the query."""
        start, first, table, page_of = self.start, self.first, self.table, self.page_of
        last = table.shape[1] - 1

        def mask(b: Tensor, head: Tensor, query: Tensor, row: Tensor) -> Tensor:
            page = row // BLOCK
            at = page_of[page] - first[b] // BLOCK
            near = at.clamp(0, last)  # what is noted of other pages may be anything, and old
            mine = (at == near) & (table[b, near] == page)
            return mine & sees(start[b] + query, page_of[page] * BLOCK + row % BLOCK, look)

        return mask

    def scores(self, look: Look, single: Single | None) -> Callable[..., Tensor] | None:
        """Return what is made of a score; None: nothing."""
        if single is None and look.softcap is None:
            return None
        start, page_of, cap = self.start, self.page_of, look.softcap

        def change(score: Tensor, b: Tensor, head: Tensor, query: Tensor, row: Tensor) -> Tensor:
            if single is not None:
                score = score + single(head, start[b] + query, page_of[row // BLOCK] * BLOCK + row % BLOCK)
            return score if cap is None else cap * torch.tanh(score / cap)

        return change


def noted(where: Where) -> Tensor:
    """Write down which page of its sequence each page is: that is the same for all who share it. Return `page_of`."""
    at = torch.arange(where.table.shape[1], dtype=torch.int32, device=where.table.device)
    where.page_of[where.table.long()] = where.first[:, None] // BLOCK + at
    return where.page_of


def ones(where: Where, which: Tensor | slice, start: Tensor) -> Glance:
    """Look from one query in each of the sequences `which`, at positions `start` (B,)."""
    table = where.table[which]
    counts = (where.used[which] + (BLOCK - 1)) // BLOCK
    return Glance(start, where.first[which], table, where.page_of, counts[:, None, None], table[:, None, None])


def one(where: Where, n: int, reach: Reach, start: int, count: int, first: int) -> Glance:
    """Look from `count` queries of sequence n, whose pages begin at position `first`."""
    table = where.table[n : n + 1]
    heads = range(start, start + count, QUERIES)
    low = [(reach.lowest(i) - first) // BLOCK for i in heads]
    end = [(min(i + QUERIES, start + count) - 1 - first) // BLOCK + 1 for i in heads]
    both = torch.tensor([low, end], dtype=torch.int32).to(table.device)
    at = torch.arange(table.shape[1], dtype=torch.int32, device=table.device) + both[0][:, None]
    pages = table[0][at.clamp(max=table.shape[1] - 1)]
    counts = (both[1] - both[0])[None, None]
    begin = where.first[n : n + 1]
    return Glance(begin + (start - first), begin, table, where.page_of, counts, pages[None, None])


def flex(
    kernel: Callable[..., Any],
    q: Tensor,
    memory: Sequence[Tensor],
    look: Look,
    glance: Glance,
    single: Single | None,
    sinks: Tensor | None,
) -> Tensor:
    """Let q (B, T, H, K) look at the memory, keys (R, G, K) and values (R, G, V) -> (B, T, H, V)."""
    keys, values = (t.transpose(0, 1)[None] for t in memory)
    mask = BlockMask.from_kv_blocks(
        glance.counts,
        glance.pages,
        BLOCK_SIZE=(QUERIES, BLOCK),
        mask_mod=glance.visible(look),
        seq_lengths=(q.shape[1], keys.shape[2]),
        compute_q_blocks=False,
    )
    found = kernel(
        q.transpose(1, 2),
        keys,
        values,
        score_mod=glance.scores(look, single),
        block_mask=mask,
        scale=look.scale,
        enable_gqa=q.shape[2] != keys.shape[1],
        kernel_options={"BLOCK_N": BLOCK},
        return_aux=None if sinks is None else AuxRequest(lse=True),
    )
    if sinks is None:
        return found.transpose(1, 2)
    out, aux = found
    # softmax with one more score s: what the others have is left to exp(lse) / (exp(lse) + exp(s))
    left = torch.sigmoid(aux.lse - sinks.to(aux.lse.dtype)[:, None])
    return (out * left[..., None].to(out.dtype)).transpose(1, 2)
