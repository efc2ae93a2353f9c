"""Recurrent mixers against other implementations and other forms of the same formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.model import spec
from terakoya.model import spec_recurrent as kinds
from terakoya.model.context import Packed
from terakoya.model.model import mixer
from terakoya.model.statespace import Diagonal, LowRank, legs
from terakoya.ops import invariant
from terakoya.ops.sequences import Sequences
from tests.model.test_recurrent import DIM, made, noise


def test_linear_attention_is_a_sum_over_all_pairs() -> None:
    """Katharopoulos 2020, eq. 8: weights f(q) f(k) over all earlier tokens, normed to one."""
    m, x = made(kinds.LinearAttention(3)), noise(150, DIM)
    q, k, v = (p(x).unflatten(-1, (3, -1)).transpose(0, 1) for p in (m.q, m.k, m.v))
    w = ((F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-1, -2)).tril()
    want = m.o(((w / w.sum(-1, keepdim=True)) @ v).transpose(0, 1).flatten(1))
    assert torch.allclose(m(x, Packed([150])), want, atol=1e-10)


def test_retention_is_parallel_too() -> None:
    """Sun 2023, eq. 5: (Q K^T * D) V with D_nm = gamma^(n - m), the rotation as a complex number."""
    m, x, n = made(kinds.Retention(2, expand=2)), noise(150, DIM), 150
    K = DIM // 2
    turn = torch.polar(
        torch.ones(n, K // 2, dtype=torch.float64),
        torch.arange(n)[:, None] * 10_000.0 ** (-torch.arange(0, K, 2, dtype=torch.float64) / K),
    )

    def turned(t: Tensor) -> Tensor:
        pairs = torch.view_as_complex(t.unflatten(-1, (2, K // 2, 2)).contiguous())
        return torch.view_as_real(pairs * turn[:, None]).flatten(-2).transpose(0, 1)

    q, k = turned(m.q(x)), turned(m.k(x)) * K**-0.5
    v = m.v(x).unflatten(-1, (2, -1)).transpose(0, 1)
    gap = torch.arange(n)[:, None] - torch.arange(n)
    gamma = 1 - 2.0 ** (-5 - torch.arange(2, dtype=torch.float64))
    fade = torch.where(gap >= 0, gamma[:, None, None] ** gap.clamp(min=0), 0.0)
    y = ((q @ k.transpose(-1, -2) * fade) @ v).transpose(0, 1)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)
    want = m.o(y.flatten(1) * F.silu(m.gate(x)))
    assert torch.allclose(m(x, Packed([n])), want, atol=1e-5)  # the rotary table is of single precision


def test_qwen3_next_has_the_same_gated_delta_rule() -> None:
    pytest.importorskip("transformers", reason="needs terakoya[reference]")
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    G, H, K, V = 2, 4, 6, 5
    config = Qwen3NextConfig(
        hidden_size=DIM,
        linear_num_key_heads=G,
        linear_num_value_heads=H,
        linear_key_head_dim=K,
        linear_value_head_dim=V,
        linear_conv_kernel_dim=4,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        rms_norm_eps=1e-6,
        hidden_act="silu",
    )
    theirs = Qwen3NextGatedDeltaNet(config, 0).eval()
    ours = made(kinds.GatedDelta(G, H, K, V, conv=4), dtype=torch.float32)
    with torch.no_grad():
        q, k, v = (w.unflatten(0, (G, -1)) for w in ours.x.weight.split([G * K, G * K, H * V]))
        z = ours.z.weight.unflatten(0, (G, -1))
        theirs.in_proj_qkvz.weight.copy_(torch.cat([q, k, v, z], 1).flatten(0, 1))
        pair = torch.cat([w.unflatten(0, (G, -1)) for w in (ours.beta.weight, ours.dt.weight)], 1)
        theirs.in_proj_ba.weight.copy_(pair.flatten(0, 1))
        theirs.conv1d.weight.copy_(ours.conv.weight)
        theirs.dt_bias.copy_(ours.step)
        theirs.A_log.copy_(ours.decay)
        theirs.norm.weight.copy_(ours.norm.weight)
        theirs.out_proj.weight.copy_(ours.o.weight)
        x = noise(130, DIM).float()
        want, got = theirs(x[None])[0], ours(x, Packed([130]))
    assert (got - want).abs().max() <= 2e-5 * max(1.0, want.std().item())


@pytest.mark.parametrize("value", [None, 3])
def test_rwkv7_says_what_the_public_reference_says(value: int | None) -> None:
    """BlinkDL/RWKV-LM, RWKV-v7/rwkv_v7_numpy.py, written out again with its names."""
    H, N = 3, DIM // 3
    model = spec.Model(vocab=8, dim=DIM, depth=2, context=64, blocks=(spec.Block(()),))
    m = made(kinds.Rwkv7(H, 4, 4, 5, value=value))
    x = noise(20, DIM)
    v0 = noise(20, DIM, seed=7)
    ctx = Packed([20])
    if value is not None:
        ctx.share("rwkv7 first values", lambda: v0)
    assert isinstance(m, type(mixer(kinds.Rwkv7(H, 4, 4, 5, value=value), model, 0)))
    got = m(x, ctx)
    last, S, want = torch.zeros(DIM, dtype=torch.float64), torch.zeros(H, N, N, dtype=torch.float64), []
    for t in range(20):
        xr, xw, xk, xv, xa, xg = (x[t] + m.shares[n] * (last - x[t]) for n in "rwkvag")
        last = x[t]
        r, k, v = m.r(xr), m.k(xk), m.v(xv)
        w = torch.exp(-torch.sigmoid(m.w.b.bias + torch.tanh(xw @ m.w.a.weight.T) @ m.w.b.weight.T) / math.e**0.5)
        a = torch.sigmoid(m.a.b.bias + (xa @ m.a.a.weight.T) @ m.a.b.weight.T)
        g = torch.sigmoid(xg @ m.g.a.weight.T) @ m.g.b.weight.T
        if m.first is not None:
            v = v + (v0[t] - v) * torch.sigmoid(m.first.b.bias + (xv @ m.first.a.weight.T) @ m.first.b.weight.T)
        kk = (k * m.lengthen).view(H, N)
        kk = kk / kk.norm(dim=1, keepdim=True)
        k = k * (1 + (a - 1) * m.soften)
        r, w, k, v, a = (u.view(H, N, 1) for u in (r, w, k, v, a))
        kk = kk.view(H, N, 1)
        S = S * w.mT - S @ kk * (kk * a).mT + v * k.mT
        y = (S @ r)[..., 0]
        y = (y - y.mean(1, keepdim=True)) / torch.sqrt(y.var(1, keepdim=True, unbiased=False) + 64e-5)
        y = y.flatten() * m.norm + m.norm_bias
        y = y + ((r[..., 0] * k[..., 0] * m.bonus).sum(1, keepdim=True) * v[..., 0]).flatten()
        want.append(m.o(y * g))
    assert torch.allclose(got, torch.stack(want), atol=1e-9)


def test_the_low_rank_form_is_hippo() -> None:
    """V (diag - P P*) V* is LegS's lower triangle, and V is unitary, so both have the same eigenvalues and norms."""
    n = 12
    turn, low, write = legs(n)
    a = torch.diag(-0.5 + 1j * turn) - low[:, None] * low.conj()[None]
    root = torch.sqrt(2 * torch.arange(n, dtype=torch.float64) + 1)
    hippo = -(torch.tril(root[:, None] * root, -1) + torch.diag(torch.arange(n, dtype=torch.float64) + 1))
    assert torch.allclose(torch.linalg.matrix_norm(a), torch.linalg.matrix_norm(hippo).to(torch.float64))
    t = torch.linspace(0.1, 2, 5, dtype=torch.float64)[:, None, None]
    mine = torch.linalg.matrix_exp(t * a) @ write  # the same system seen along B: B* e^{tA} B
    theirs = torch.linalg.matrix_exp(t * hippo) @ root
    assert torch.allclose((mine @ write.conj()).real, theirs @ root, atol=1e-8)


@pytest.mark.parametrize("kind", [Diagonal, LowRank])
def test_a_state_space_is_a_convolution(kind: type[Diagonal] | type[LowRank]) -> None:
    """y = sum_i C A^i B u_{t-i} by FFT over the whole text (Gu 2021, eq. 4-5)."""
    system = kind(5, 6).double()
    with torch.no_grad():
        system.start(lambda leaf: torch.Generator().manual_seed(len(leaf)))
        a, b, c = system.system()
        u = noise(200, 5)
        values, x = [], b
        for _ in range(200):
            values.append((c * x).sum(-1).real)
            x = a * x if a.dim() == 2 else (a @ x[..., None])[..., 0]
        kernel = torch.stack(values)
        want = torch.fft.irfft(torch.fft.rfft(u, n=400, dim=0) * torch.fft.rfft(kernel, n=400, dim=0), n=400, dim=0)
        got, _ = invariant.invariant(u, a, b, c, Sequences([0, 200], "cpu"))
    assert torch.allclose(got, want[:200], atol=1e-9)
