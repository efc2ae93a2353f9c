"""What stands for a GPU in tests: kernels that refuse what the real ones refuse, and recordings on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from terakoya.engine.kinds import BLOCK
from terakoya.engine.whole import QUERIES


class Varlen:
    """torch's varlen_attn with a block table, by its documentation; raises where PyTorch's flash kernel (aten's
    mha_varlen_fwd) checks. Reads no row that is not among a sequence's keys.
    """

    def __init__(self, *dtypes: torch.dtype) -> None:
        self.dtypes, self.calls = dtypes, 0

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
        scale: float, window_size: tuple[int, int], enable_gqa: bool, seqused_k: Tensor, block_table: Tensor,
        num_splits: int | None,
    ) -> Tensor:  # fmt: skip
        self.calls += 1
        pages, size, G, K = key.shape
        count = len(cu_seq_q) - 1
        assert query.dtype == key.dtype == value.dtype
        assert query.dtype in self.dtypes
        assert size % 256 == 0
        assert key.shape == value.shape
        assert K <= 256
        assert K % 8 == 0
        assert all(t.stride(-1) == 1 for t in (query, key, value))
        for t, shape in ((cu_seq_q, (count + 1,)), (cu_seq_k, (count + 1,)), (seqused_k, (count,))):
            assert t.dtype == torch.int32
            assert t.is_contiguous()
            assert t.shape == shape
        assert block_table.dtype == torch.int32
        assert block_table.stride(-1) == 1
        assert block_table.shape[0] == count
        assert enable_gqa or query.shape[1] == G
        assert int(cu_seq_q[-1]) == len(query)
        assert int((cu_seq_q[1:] - cu_seq_q[:-1]).max()) <= max_q
        assert int(seqused_k.max()) <= max_k <= block_table.shape[1] * size
        out = torch.full_like(query, float("nan"))
        for n in range(count):
            a, b, used = int(cu_seq_q[n]), int(cu_seq_q[n + 1]), int(seqused_k[n])
            assert 0 < b - a <= used
            at = torch.arange(used)
            page = block_table[n, at // size].long()
            assert int(page.min()) >= 0
            assert int(page.max()) < pages
            ks, vs = (t[page, at % size].float().repeat_interleave(query.shape[1] // G, 1) for t in (key, value))
            scores = torch.einsum("thk,shk->hts", query[a:b].float(), ks) * scale
            gap = torch.arange(used - (b - a), used)[:, None] - at[None]
            left, right = window_size
            seen = (gap <= left if left >= 0 else gap > -used) & (gap >= -right if right >= 0 else gap > -used)
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            out[a:b] = torch.einsum("hts,shk->thk", weights, vs).to(out.dtype)
        return out


def flexible(query: Tensor, key: Tensor, value: Tensor, *, hide: bool = True, **more: Any) -> Any:
    """torch's own FlexAttention, uncompiled. It computes all rows and hides most; the kernel reads only the pages that
    it is told. So rows of other pages are zeros here, and (`hide`) hidden from queries that do not read them.
    """
    mask = more.pop("block_mask")
    assert mask.BLOCK_SIZE == (QUERIES, BLOCK)
    B, _, T, _ = query.shape
    pages = key.shape[2] // BLOCK
    listed = torch.zeros(B, -(-T // QUERIES), pages, dtype=torch.bool)
    for b in range(B):
        for i in range(listed.shape[1]):
            count = int(mask.kv_num_blocks[b, 0, i])
            assert 0 < count <= mask.kv_indices.shape[-1]
            listed[b, i, mask.kv_indices[b, 0, i, :count].long()] = True
    own, read = mask.mask_mod, listed.any(0).any(0).repeat_interleave(BLOCK)
    key, value = (torch.where(read[None, None, :, None], t, torch.zeros((), dtype=t.dtype)) for t in (key, value))

    def both(b: Tensor, h: Tensor, q: Tensor, row: Tensor) -> Tensor:
        return own(b, h, q, row) & listed[b, q // QUERIES, row // BLOCK]

    mask = copy(mask)
    mask.mask_mod = both if hide else own
    before, torch_flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = torch_flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG, True
    try:
        return torch_flex.flex_attention(query, key, value, block_mask=mask, **more)
    finally:
        torch_flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = before


def twice(*args: Any, **more: Any) -> Any:
    """FlexAttention, whose masks must hide by themselves all that the kernel is not told to read."""
    found = flexible(*args, **more)
    for a, b in zip(tree_leaves(found), tree_leaves(flexible(*args, hide=False, **more)), strict=True):
        assert a is None or torch.equal(a, b)
    return found


class Tape(TorchDispatchMode):
    """What a CUDA graph is: the kernels of one run, bound to their memory, without the Python around them.

    Playing calls every operation again with the very tensors of the recording, and puts results where the first ones
    lie. What a recording on a GPU may not do raises: to ask for a number, or to bring a tensor from the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if "_local_scalar_dense" in name or "nonzero" in name or "unique" in name:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if "lift_fresh" in name and args[0].dim():
            raise RuntimeError("operation not permitted when stream is capturing: a tensor from the host")
        return self.note(func, args, kwargs or {})

    def note(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    def play(self) -> None:
        with torch.inference_mode():
            for func, args, kwargs, out in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Recorder:
    """Records on the CPU, and counts. Kernels made with `kernel` are one operation to it."""

    def __init__(self) -> None:
        self.tape: Tape | None = None
        self.recorded = self.played = 0

    def kernel(self, f: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if self.tape is None:
                return f(*args, **kwargs)
            with _disable_current_modes():
                return self.tape.note(f, args, kwargs)

        return called

    def __call__(self, f: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        f()  # as on a GPU: once without being recorded
        self.tape = tape = Tape()
        try:
            with tape:
                out = f()
        finally:
            self.tape = None
        self.recorded += 1

        def play() -> None:
            self.played += 1
            tape.play()

        return play, out
