"""Weights in few bits that heed what the layers really read: GPTQ and AWQ, layer by layer through the model itself.

Each block is run on the calibration text with the blocks before it already packed, so that it also makes up for
what they lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.context import Packed as Texts
from terakoya.model.model import Block, Model
from terakoya.quant.codecs import Int4, Int8, codes_on, grid
from terakoya.quant.linear import linears, put, quantise

Method = Literal["gptq", "awq"]
Whole = Int4 | Int8  # codecs of whole numbers
STRIPE = 128  # columns whose errors are spread before the columns after them are touched
DAMP = 0.01  # of the mean of the diagonal, added to it
SHRINK = tuple(1 - 0.05 * i for i in range(9))  # of a group's reach: what lies outside is cut off
POWERS = tuple(i / 10 for i in range(11))  # of the size of inputs, tried as scales of columns


@dataclass
class Inputs:
    """What a layer was given: x^T x (K, K) and the mean size of every column, over `rows` vectors."""

    columns: int
    rows: int = 0
    squares: Tensor = field(default_factory=lambda: torch.empty(0))
    sizes: Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, x: Tensor) -> None:
        x = x.detach().float().reshape(-1, self.columns)
        if not self.rows:
            self.squares, self.sizes = x.new_zeros(self.columns, self.columns), x.new_zeros(self.columns)
        self.squares += x.T @ x
        self.sizes += x.abs().sum(0)
        self.rows += len(x)


@torch.no_grad()
def calibrate(
    model: Model, texts: Sequence[Sequence[int]], codec: Whole, method: Method, *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Model:  # fmt: skip
    """Pack the linear layers of the blocks in place; token table and head are left to `quantise`.

    `texts` are token ids, each a text by itself, of no more than the model's context. Experts and layers that no
    token reaches are rounded. Raise TerakoyaError for texts too short and models that are no chain of blocks.
    """
    s = model.spec
    if s.encoder is not None or s.share:
        raise TerakoyaError("calibrate", "is for decoders whose layers each run once", hint="use --method rtn")
    lengths = [len(t) for t in texts]
    if not texts or max(lengths) > s.context or min(lengths) < 2:
        raise TerakoyaError("calibrate", "needs texts of 2 tokens to the model's context", given=lengths[:8])
    device = model.embed.token.weight.device
    x = model.embed(torch.tensor([i for t in texts for i in t], device=device), Texts(lengths, device))
    for i, block in enumerate(model.layers):
        assert isinstance(block, Block)
        ctx = Texts(lengths, device)
        wanted = {n: m for n, m in linears(model) if n.startswith(f"layers.{i}.") and type(m) is nn.Linear}
        _fit(wanted, codec)
        seen = _watched(block, wanted, x, ctx)
        if method == "awq":
            _balance(block, s.layers()[i], f"layers.{i}", wanted, seen, codec)
            seen = _watched(block, wanted, x, ctx)
        for name, linear in wanted.items():
            found = seen[name]
            if found.rows:
                pack = gptq if method == "gptq" else clipped
                put(linear, codec, pack(linear.weight.detach().float(), found, codec))
        quantise(block_of(model, i), codec, table=None)  # what was not reached, and experts
        x = block(x, ctx)
        progress(i + 1, len(model.layers))
    return model


def block_of(model: Model, i: int) -> Any:
    """Return a view of the model that has layer i alone."""
    alone = nn.Module()
    alone.layers = nn.ModuleDict({str(i): model.layers[i]})
    return alone


def _fit(wanted: Mapping[str, nn.Linear], codec: Whole) -> None:
    for name, linear in wanted.items():
        columns = linear.in_features
        if columns % (codec.group or columns) or columns % 2:
            raise TerakoyaError(name, f"has rows of {columns} columns, not whole groups of {codec.group}")


@contextmanager
def _watching(wanted: Mapping[str, nn.Linear], seen: Mapping[str, Inputs]) -> Iterator[None]:
    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, given: seen[name].add(given[0])

    hooks = [linear.register_forward_pre_hook(watch(name)) for name, linear in wanted.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _watched(block: Block, wanted: Mapping[str, nn.Linear], x: Tensor, ctx: Texts) -> dict[str, Inputs]:
    """Run a block and return what its layers were given."""
    seen = {name: Inputs(linear.in_features) for name, linear in wanted.items()}
    with _watching(wanted, seen):
        block(x, ctx)
    return seen


def clipped_grid(grouped: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the grid, of several reaches, that loses least: grouped (N, G, group), weight (G, group) of errors."""
    best: Tensor | None = None
    scales = minima = torch.empty(0)
    for shrink in SHRINK:
        a, b = grid(grouped, shrink)
        back = codes_on(grouped, a, b) * a.float()[..., None] + b.float()[..., None]
        lost = ((back - grouped).square() * weight).sum(-1)
        if best is None:
            best, scales, minima = lost, a, b
            continue
        better = lost < best
        best = torch.where(better, lost, best)
        scales, minima = torch.where(better, a, scales), torch.where(better, b, minima)
    return scales, minima


def clipped(weight: Tensor, inputs: Inputs, codec: Whole) -> dict[str, Tensor]:
    """Round to the nearest, four bits on grids that heed the size of the inputs: weight (N, K) -> parts."""
    if isinstance(codec, Int8):
        return codec.encode(weight)
    grouped, importance = _by_group(weight, inputs, codec)
    return codec.rounded(grouped, *clipped_grid(grouped, importance))


def _by_group(weight: Tensor, inputs: Inputs, codec: Whole) -> tuple[Tensor, Tensor]:
    group = codec.group or weight.shape[1]
    importance = inputs.squares.diagonal() / inputs.rows
    importance = importance + DAMP * importance.mean() + 1e-12
    return weight.unflatten(1, (-1, group)), importance.view(-1, group)


def gptq(weight: Tensor, inputs: Inputs, codec: Whole) -> dict[str, Tensor]:
    """Round column after column, each time moving the columns that follow so as to make up for it (Frantar 2022).

    The grids are set beforehand and the most used columns go first, so the order leaves no trace in what is stored.
    """
    rows, columns = weight.shape
    grouped, importance = _by_group(weight, inputs, codec)
    if isinstance(codec, Int8):
        scales, lowest, highest = codec.scales(grouped), -127, 127
        minima = torch.zeros_like(scales)
    else:
        (scales, minima), lowest, highest = clipped_grid(grouped, importance), 0, 15
    group = codec.group or columns
    h = inputs.squares / inputs.rows
    dead = h.diagonal() == 0
    h = h + torch.diag(dead.to(h.dtype))
    w = weight.clone()
    order = h.diagonal().argsort(descending=True)
    w, h = w[:, order], h[order][:, order]
    upper = _upper(h)
    codes = torch.empty(rows, columns)
    for a in range(0, columns, STRIPE):
        b = min(a + STRIPE, columns)
        part, lost = w[:, a:b].clone(), torch.empty(rows, b - a)
        for j in range(b - a):
            g = int(order[a + j]) // group
            scale, least = scales[:, g].float(), minima[:, g].float()
            q = codes_on(part[:, j, None], scale, least, lowest, highest)[:, 0]
            codes[:, a + j] = q
            lost[:, j] = (part[:, j] - (q * scale + least)) / upper[a + j, a + j]
            part[:, j + 1 :] -= lost[:, j, None] * upper[a + j, a + j + 1 : b]
        w[:, b:] -= lost @ upper[a:b, b:]
    placed = torch.empty_like(codes)
    placed[:, order] = codes
    return codec.parts(placed, scales) if isinstance(codec, Int8) else codec.parts(placed, scales, minima)


def _upper(h: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse, with as much damping as it takes."""
    mean, damp = h.diagonal().mean(), DAMP
    while damp < 10:
        lower, failed = torch.linalg.cholesky_ex(h + torch.diag(torch.full_like(h.diagonal(), float(damp * mean))))
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        damp *= 10
    raise TerakoyaError("calibrate", "finds no way to invert the inputs of a layer", hint="give more text")


# AWQ: columns that large inputs meet are made larger, and what makes those inputs smaller by as much (Lin 2023).


@dataclass(frozen=True)
class Joint:
    """Layers that read one vector, and how to divide that vector by factors (K,) where it comes from."""

    readers: tuple[nn.Linear, ...]
    first: str  # whose inputs were watched
    divide: Callable[[Tensor], None]
    heads: tuple[int, int] | None = None  # query heads and key-value heads, where columns are values of heads


def _balance(
    block: Block, s: spec.Block, place: str, wanted: Mapping[str, nn.Linear], seen: Mapping[str, Inputs], codec: Whole
) -> None:
    for joint in _joints(block, s, place, wanted):
        if seen[joint.first].rows:
            factors = _factors(joint, seen[joint.first], codec)
            joint.divide(factors)
            spread = _to_heads(factors, joint.heads) if joint.heads else factors
            for linear in joint.readers:
                linear.weight.mul_(spread.to(linear.weight.dtype))


def _joints(block: Block, s: spec.Block, place: str, wanted: Mapping[str, nn.Linear]) -> Iterator[Joint]:
    """Find where factors can be moved from a vector's readers to its source without changing what is computed."""

    def get(*names: str) -> tuple[nn.Linear, ...] | None:
        found = tuple(wanted[f"{place}.{n}"] for n in names if f"{place}.{n}" in wanted)
        return found if len(found) == len(names) else None

    for branch in s.branches:
        for i, mixer in enumerate(branch.mix):
            name = "mlp" if isinstance(mixer, spec.MLP) else "attn"
            alone = branch.pre is not None and (branch.each or len(branch.mix) == 1) and not branch.normed_skip
            norm = getattr(block, f"{name}_pre", None) if alone and (branch.each or i == 0) else None
            if isinstance(mixer, spec.Attention):
                if norm is not None and (found := get("attn.q", "attn.k", "attn.v")) and norm.spec.affine:
                    yield Joint(found, f"{place}.attn.q", lambda f, n=norm: _divide_norm(n, f))
                if (found := get("attn.v", "attn.o")) and mixer.clip is None:
                    heads = mixer.heads, mixer.kv_heads or mixer.heads
                    yield Joint((found[1],), f"{place}.attn.o", lambda f, v=found[0]: _divide_rows(v, f), heads)
            elif isinstance(mixer, spec.MLP):
                names = ("mlp.gate", "mlp.up") if mixer.gated else ("mlp.up",)
                if norm is not None and (found := get(*names)) and norm.spec.affine:
                    yield Joint(found, f"{place}.mlp.up", lambda f, n=norm: _divide_norm(n, f))
                if mixer.gated and mixer.act != "swiglu_clamped" and (found := get("mlp.up", "mlp.down")):
                    yield Joint((found[1],), f"{place}.mlp.down", lambda f, u=found[0]: _divide_rows(u, f))


def _divide_norm(norm: Any, factors: Tensor) -> None:
    factors = factors.to(norm.weight.dtype)
    norm.weight.copy_((norm.weight + norm.spec.offset) / factors - norm.spec.offset)
    if norm.bias is not None:
        norm.bias.div_(factors)


def _divide_rows(linear: nn.Linear, factors: Tensor) -> None:
    linear.weight.div_(factors[:, None].to(linear.weight.dtype))
    if linear.bias is not None:
        linear.bias.div_(factors.to(linear.bias.dtype))


def _to_heads(factors: Tensor, heads: tuple[int, int]) -> Tensor:
    """Give every query head the factors of its key-value head: (G · K,) -> (H · K,)."""
    return factors.view(heads[1], 1, -1).expand(-1, heads[0] // heads[1], -1).flatten()


def _factors(joint: Joint, inputs: Inputs, codec: Whole) -> Tensor:
    """Choose the power of the inputs' sizes with which least is lost, error weighed by x^T x: -> (K,)."""
    sizes, h = inputs.sizes / inputs.rows, inputs.squares / inputs.rows
    if joint.heads:  # heads that share values share factors
        sizes = sizes.view(joint.heads[1], joint.heads[0] // joint.heads[1], -1).mean(1).flatten()
    best, kept = float("inf"), torch.ones_like(sizes)
    for power in POWERS:
        factors = sizes.clamp(min=1e-6).pow(power)
        factors = (factors / (factors.max() * factors.min()).sqrt()).clamp(1e-4, 1e4)
        spread = _to_heads(factors, joint.heads) if joint.heads else factors
        lost = 0.0
        for linear in joint.readers:
            w = linear.weight.detach().float()
            scaled = w * spread
            off = codec.decode(codec.encode(scaled), w.shape[1]) / spread - w
            lost += ((off @ h) * off).sum().item()
        if lost < best:
            best, kept = lost, factors
    return kept
