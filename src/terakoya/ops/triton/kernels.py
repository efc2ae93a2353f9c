"""The kernels: one program for each sequence, head and tile of columns or channels; the state stays in registers.

Memories that fade by one number a head go by pieces of C tokens, products inside and the state between them (Dao 2024);
a first-order scan goes by pieces whose inside is an associative scan (Blelloch 1990; Martin & Cundy 2018); the others
go token after token. Places are in numbers of 32 bits: tensors of less than 2^31 numbers. Unverified on a GPU.
"""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def decayed(
    q, k, v, g, start, y, last, cu, H,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, FADES: tl.constexpr,
):  # fmt: skip
    """S <- e^g S + k v^T, y = S^T q: q, k (T, H, K), v (T, H, V), g (T, H) -> y (T, H, V)."""
    n, h = tl.program_id(0) // H, tl.program_id(0) % H
    begin, end = tl.load(cu + n), tl.load(cu + n + 1)
    rows, ks, vs = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    held = (tl.program_id(0) * K + ks[:, None]) * V + vs[None, :]
    there = (ks < K)[:, None] & (vs < V)[None, :]
    s = tl.load(start + held, mask=there, other=0.0)
    earlier = rows[:, None] >= rows[None, :]
    for at in range(begin, end, C):
        t = at + rows
        row = (t * H + h)[:, None]
        mk, mv = (t < end)[:, None] & (ks < K)[None, :], (t < end)[:, None] & (vs < V)[None, :]
        qs = tl.load(q + row * K + ks[None, :], mask=mk, other=0.0)
        keys = tl.load(k + row * K + ks[None, :], mask=mk, other=0.0)
        values = tl.load(v + row * V + vs[None, :], mask=mv, other=0.0)
        scores = tl.dot(qs, tl.trans(keys), input_precision="ieee")
        fade = tl.zeros([C], dtype=tl.float32)
        if FADES:
            fade = tl.load(g + t * H + h, mask=t < end, other=0.0)
        total, whole = tl.cumsum(fade, 0), tl.sum(fade, 0)
        scores *= tl.exp(tl.where(earlier, total[:, None] - total[None, :], 0.0))
        qs *= tl.exp(total)[:, None]
        keys *= tl.exp(whole - total)[:, None]
        inside = tl.dot(tl.where(earlier, scores, 0.0), values, input_precision="ieee")
        tl.store(y + row * V + vs[None, :], inside + tl.dot(qs, s, input_precision="ieee"), mask=mv)
        s = tl.exp(whole) * s + tl.dot(tl.trans(keys), values, input_precision="ieee")
    tl.store(last + held, s, mask=there)


@triton.jit
def matrix(
    r, e, k, v, a, b, start, y, last, cu, H,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """S <- diag(e) S + b (a^T S) + k v^T, y = S^T r: r, e, k, a, b (T, H, K), v (T, H, V) -> y (T, H, V)."""
    n, h = tl.program_id(0) // H, tl.program_id(0) % H
    begin, end = tl.load(cu + n), tl.load(cu + n + 1)
    ks, vs = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    mk, mv = ks < K, vs < V
    held = (tl.program_id(0) * K + ks[:, None]) * V + vs[None, :]
    s = tl.load(start + held, mask=mk[:, None] & mv[None, :], other=0.0)
    for t in range(begin, end):
        row = (t * H + h) * K + ks
        came = tl.load(v + (t * H + h) * V + vs, mask=mv, other=0.0)
        seen = tl.sum(tl.load(a + row, mask=mk, other=0.0)[:, None] * s, 0)
        s = tl.load(e + row, mask=mk, other=0.0)[:, None] * s
        s += tl.load(b + row, mask=mk, other=0.0)[:, None] * seen[None, :]
        s += tl.load(k + row, mask=mk, other=0.0)[:, None] * came[None, :]
        read = tl.sum(tl.load(r + row, mask=mk, other=0.0)[:, None] * s, 0)
        tl.store(y + (t * H + h) * V + vs, read, mask=mv)
    tl.store(last + held, s, mask=mk[:, None] & mv[None, :])


@triton.jit
def _after(a0, b0, a1, b1):
    """Join two stretches of h <- a h + b."""
    return a0 * a1, b0 * a1 + b1


@triton.jit
def scan(a, b, start, h, cu, D, C: tl.constexpr, B: tl.constexpr):
    """h_t = a_t h_{t-1} + b_t: a, b (T, D), start (N, D) -> h (T, D)."""
    n = tl.program_id(0)
    begin, end = tl.load(cu + n), tl.load(cu + n + 1)
    rows, ds = tl.arange(0, C), tl.program_id(1) * B + tl.arange(0, B)
    before = tl.load(start + n * D + ds, mask=ds < D, other=0.0)
    for at in range(begin, end, C):
        t = at + rows
        place, there = t[:, None] * D + ds[None, :], (t < end)[:, None] & (ds < D)[None, :]
        keep = tl.load(a + place, mask=there, other=1.0)
        come = tl.load(b + place, mask=there, other=0.0)
        keep, come = tl.associative_scan((keep, come), 0, _after)
        come += keep * before[None, :]
        tl.store(h + place, come, mask=there)
        before = tl.sum(tl.where((rows == C - 1)[:, None], come, 0.0), 0)  # behind the end nothing moves


@triton.jit
def selective(u, dt, a, b, c, start, y, last, cu, D, S: tl.constexpr, BS: tl.constexpr, B: tl.constexpr):
    """h <- e^{dt a} h + dt u b, y = c h: u, dt (T, D), a (D, S), b, c (T, S) -> y (T, D)."""
    n = tl.program_id(0)
    begin, end = tl.load(cu + n), tl.load(cu + n + 1)
    ds, ss = tl.program_id(1) * B + tl.arange(0, B), tl.arange(0, BS)
    there = (ds < D)[:, None] & (ss < S)[None, :]
    place = ds[:, None] * S + ss[None, :]
    rates = tl.load(a + place, mask=there, other=0.0)
    h = tl.load(start + n * D * S + place, mask=there, other=0.0)
    for t in range(begin, end):
        step = tl.load(dt + t * D + ds, mask=ds < D, other=0.0)
        fed = step * tl.load(u + t * D + ds, mask=ds < D, other=0.0)
        write = tl.load(b + t * S + ss, mask=ss < S, other=0.0)
        read = tl.load(c + t * S + ss, mask=ss < S, other=0.0)
        h = tl.exp(step[:, None] * rates) * h + fed[:, None] * write[None, :]
        tl.store(y + t * D + ds, tl.sum(h * read[None, :], 1), mask=ds < D)
    tl.store(last + n * D * S + place, h, mask=there)


@triton.jit
def diagonal(u, a, b, c, start, y, last, cu, D, S: tl.constexpr, BS: tl.constexpr, B: tl.constexpr):
    """x <- a x + b u, y = Re(c x), complex numbers as pairs: u (T, D), a, b, c (D, S, 2) -> y (T, D)."""
    n = tl.program_id(0)
    begin, end = tl.load(cu + n), tl.load(cu + n + 1)
    ds, ss = tl.program_id(1) * B + tl.arange(0, B), tl.arange(0, BS)
    there = (ds < D)[:, None] & (ss < S)[None, :]
    place = 2 * (ds[:, None] * S + ss[None, :])
    held = 2 * n * D * S + place
    ar, ai = tl.load(a + place, mask=there, other=0.0), tl.load(a + place + 1, mask=there, other=0.0)
    br, bi = tl.load(b + place, mask=there, other=0.0), tl.load(b + place + 1, mask=there, other=0.0)
    cr, ci = tl.load(c + place, mask=there, other=0.0), tl.load(c + place + 1, mask=there, other=0.0)
    xr, xi = tl.load(start + held, mask=there, other=0.0), tl.load(start + held + 1, mask=there, other=0.0)
    for t in range(begin, end):
        come = tl.load(u + t * D + ds, mask=ds < D, other=0.0)[:, None]
        real = ar * xr - ai * xi + br * come
        xi = ar * xi + ai * xr + bi * come
        xr = real
        tl.store(y + t * D + ds, tl.sum(cr * xr - ci * xi, 1), mask=ds < D)
    tl.store(last + held, xr, mask=there)
    tl.store(last + held + 1, xi, mask=there)


@triton.jit
def wkv(k, v, w, u, total, most, y, last, peak, cu, D, B: tl.constexpr):
    """RWKV-4's mean: k, v (T, D), w, u (D,), total (N, 2, D), most (N, D) -> y (T, D), the sums, their exponent."""
    n = tl.program_id(0)
    begin, end = tl.load(cu + n), tl.load(cu + n + 1)
    ds = tl.program_id(1) * B + tl.arange(0, B)
    there = ds < D
    fade, bonus = tl.load(w + ds, mask=there, other=0.0), tl.load(u + ds, mask=there, other=0.0)
    over = tl.load(total + 2 * n * D + ds, mask=there, other=0.0)
    under = tl.load(total + (2 * n + 1) * D + ds, mask=there, other=0.0)
    top = tl.load(most + n * D + ds, mask=there, other=0.0)
    for t in range(begin, end):
        key = tl.load(k + t * D + ds, mask=there, other=0.0)
        value = tl.load(v + t * D + ds, mask=there, other=0.0)
        high = tl.maximum(top, bonus + key)
        old, new = tl.exp(top - high), tl.exp(bonus + key - high)
        tl.store(y + t * D + ds, (old * over + new * value) / (old * under + new), mask=there)
        high = tl.maximum(top + fade, key)
        old, new = tl.exp(top + fade - high), tl.exp(key - high)
        over, under, top = old * over + new * value, old * under + new, high
    tl.store(last + 2 * n * D + ds, over, mask=there)
    tl.store(last + (2 * n + 1) * D + ds, under, mask=there)
    tl.store(peak + n * D + ds, top, mask=there)
