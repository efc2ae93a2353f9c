"""Flamingo against the formulas of its paper and IDEFICS' resampler; Gato's numbers; PaLM-E's vectors in the text."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from terakoya.config import override
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import build, initialise
from terakoya.model.context import Memory, Packed
from terakoya.model.flamingo import Resampler, last_shown, show
from terakoya.model.model import Model
from terakoya.model.sight import placed, widened
from terakoya.tokenizer.values import Values
from terakoya.zoo import convert, lineage

MARK, LATENTS = 7, 5


def flamingo() -> Model:
    """A tiny one whose gates stand open."""
    s = lineage.rescale(lineage.base("flamingo"), 32, 4, 16)
    eye = {"sight.image": 28, "sight.token": MARK, "resampler.latents": LATENTS}
    made = initialise(build(override(s, {"vocab": 50, "context": 64} | eye)), 0)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in made.parameters():
            p.add_((0.15 if p.dim() > 1 else 0.3) * torch.randn(p.shape, generator=rng))
    return made


def pictures(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 28, 28, generator=torch.Generator().manual_seed(n))


TEXT = torch.tensor([3, 4, MARK, 5, 6, 9, MARK, 8, 8, 10])


def read(m: Model, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    ctx = Packed([len(x)])
    show(ctx, seen, last_shown(x, MARK))
    return m.head(m(x, ctx))


def by_the_paper(m: Model, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """gated_xattn_dense of the paper's figure 4, in NumPy, before each of the language model's own layers."""
    phi, h = np.cumsum(x.numpy() == MARK), m.embed.token(x).detach()
    n = {k: v.detach().double().numpy() for k, v in m.named_parameters()}

    def norm(v: np.ndarray, name: str) -> np.ndarray:
        v = (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)
        return v * n[f"{name}.weight"] + n[f"{name}.bias"]

    for i, layer in enumerate(m.layers):
        if f"layers.{i}.glance.q.weight" not in n:
            h = layer(h, Packed([len(x)])).detach()
            continue
        y, p = h.double().numpy(), f"layers.{i}."
        found = np.zeros_like(y)
        width = m.get_submodule(f"layers.{i}.glance").width
        for t in range(len(x)):
            if phi[t] == 0:
                continue
            q = norm(y[t], p + "glance_pre") @ n[p + "glance.q.weight"].T
            media = seen[phi[t] - 1].double().numpy()
            k, v = media @ n[p + "glance.k.weight"].T, media @ n[p + "glance.v.weight"].T
            heads = []
            for a in range(0, len(q), width):
                score = k[:, a : a + width] @ q[a : a + width] / np.sqrt(width)
                share = np.exp(score - score.max())
                heads.append(share / share.sum() @ v[:, a : a + width])
            found[t] = np.concatenate(heads) @ n[p + "glance.o.weight"].T
        y = y + np.tanh(n[p + "glance_gate.alpha"]) * found
        up = np.maximum(norm(y, p + "mlp_pre") @ n[p + "mlp.up.weight"].T, 0) ** 2
        y = y + np.tanh(n[p + "mlp_gate.alpha"]) * (up @ n[p + "mlp.down.weight"].T)
        h = torch.from_numpy(y).float()
    assert m.norm is not None
    return m.head(m.norm(h))


def test_gated_cross_attention_is_the_papers() -> None:
    m = flamingo()
    with torch.no_grad():
        seen = m.see(pictures(2))
        assert m.spec.sight
        assert seen.shape == (2, LATENTS, m.spec.sight.dim)
        got, want = read(m, TEXT, seen), by_the_paper(m, TEXT, seen)
    assert (got - want).abs().max() <= 1e-4 * max(1.0, want.std().item())


@pytest.mark.parity
def test_the_resampler_is_that_of_idefics() -> None:
    idefics = pytest.importorskip("transformers.models.idefics.perceiver", reason="needs terakoya[reference]")
    config = types.SimpleNamespace(
        perceiver_config=types.SimpleNamespace(qk_layer_norms_perceiver=False),
        vision_config=types.SimpleNamespace(embed_dim=24),
    )
    theirs = idefics.IdeficsPerceiverResampler(config, 24, depth=2, n_heads=3, head_dim=8, n_latents=LATENTS)
    ours = Resampler(spec.Resampler(LATENTS, 2, 3, 8, "relu"), 24)
    names = {
        "0.context_layer_norm": "norm_seen", "0.latents_layer_norm": "norm_latents", "0.q_proj": "q", "0.k_proj": "k",
        "0.v_proj": "v", "0.output_proj": "o", "1.ln": "norm_ff", "1.fc": "mlp.up", "1.c_proj": "mlp.down",
    }  # fmt: skip
    mine = dict(ours.named_parameters())
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3)
            part, _, leaf = name.rpartition(".")
            if part.startswith("blocks."):
                _, i, rest = part.split(".", 2)
                mine[f"layers.{i}.{names[rest]}.{leaf}"].copy_(p)
            else:
                mine[name.replace("layer_norm", "norm")].copy_(p)
        seen = torch.randn(3, 11, 24, generator=torch.Generator().manual_seed(1))
        assert (ours(seen) - theirs(seen)).abs().max() <= 2e-5


def test_a_text_looks_at_the_picture_shown_last_and_at_no_other() -> None:
    m = flamingo()
    with torch.no_grad():
        seen, other = m.see(pictures(2)), m.see(pictures(2).flip(0))
        a = read(m, TEXT, seen)
        first = read(m, TEXT, torch.stack([other[0], seen[1]]))
        second = read(m, TEXT, torch.stack([seen[0], other[1]]))
    assert torch.equal(a[:2], first[:2])  # before any picture
    assert not torch.allclose(a[2:6], first[2:6], atol=1e-4)
    assert torch.equal(a[:6], second[:6])
    assert not torch.allclose(a[6:], second[6:], atol=1e-4)


def test_one_by_one_equals_one_forward() -> None:
    m = flamingo()
    with torch.no_grad():
        seen = m.see(pictures(2))
        want, memory, out, before = read(m, TEXT, seen), Memory(), [], 0
        for part in TEXT.split([4, 1, 3, 2]):
            ctx = memory.step([len(part)])
            show(ctx, seen, last_shown(part, MARK, before))
            before += int((part == MARK).sum())
            out.append(m.head(m(part, ctx)))
            ctx.close()
    assert (torch.cat(out) - want).abs().max() < 1e-4


def test_packed_equals_alone() -> None:
    m, b = flamingo(), torch.tensor([4, MARK, 9, 9])
    with torch.no_grad():
        seen = m.see(pictures(3))
        ctx = Packed([len(TEXT), len(b)])
        show(ctx, seen, torch.cat([last_shown(TEXT, MARK), last_shown(b, MARK, 2).where(b.eq(MARK).cumsum(0) > 0, -1)]))
        both = m.head(m(torch.cat([TEXT, b]), ctx))
        assert (both[: len(TEXT)] - read(m, TEXT, seen)).abs().max() < 1e-5
        assert (both[len(TEXT) :] - read(m, b, seen[2:])).abs().max() < 1e-5


def test_a_fresh_gate_changes_nothing_and_every_weight_learns_once_open() -> None:
    s = flamingo().spec
    fresh = initialise(build(s), 0)
    with torch.no_grad():
        assert torch.equal(read(fresh, TEXT, fresh.see(pictures(2))), fresh.head(fresh(TEXT, Packed([len(TEXT)]))))
    m = flamingo()
    read(m, TEXT, m.see(pictures(2))).logsumexp(-1).sum().backward()
    assert s.sight
    kept = (f"sight.layers.{s.sight.depth - 1}.", "sight.after.")  # CLIP's last layer is only kept
    for name, p in m.named_parameters():
        if not name.startswith(kept):
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
            assert p.grad.any(), name


def test_saved_and_loaded_bit_for_bit(tmp_path: Path) -> None:
    m = flamingo()
    convert.save(convert.Loaded(m, None, "flamingo"), tmp_path)
    again = convert.load(tmp_path)
    assert again.spec == m.spec
    for name, p in m.named_parameters():
        assert torch.equal(p, dict(again.model.named_parameters())[name]), name


def test_robot_states_and_pictures_stand_in_palm_es_text() -> None:
    s = override(lineage.rescale(lineage.base("palm-e"), 32, 2, 16), {"vocab": 50, "context": 64, "sight.token": MARK})
    m = initialise(build(override(s, {"sight.image": 28})), 0)
    assert m.spec.sight
    state = torch.nn.Linear(3, 32)(torch.tensor([[0.1, -2.0, 5.0]]))  # §4: a vector of states becomes one of words
    x = torch.tensor([4, *widened([MARK], m.spec.sight), 5, 0, 6])
    at, seen = placed(x, m.see(pictures(1)), m.spec.sight)
    ctx = Packed([len(x)], vectors=(torch.cat([at, torch.tensor([len(x) - 2])]), torch.cat([seen, state])))
    got = m.head(m(x, ctx))
    plain = m.head(m(x, Packed([len(x)], vectors=(at, seen))))
    assert torch.equal(got[:-2], plain[:-2])
    assert not torch.allclose(got[-2:], plain[-2:])


# Gato's numbers

V = Values()


def test_numbers_are_the_papers_tokens() -> None:
    assert V.commanded([-1.0, 0.0, 1.0]).tolist() == [32_000, 32_512, 33_023]
    # F(x) = sgn(x) log(|x| μ + 1) / log(M μ + 1), μ = 100, M = 256; then bins of 2 / 1024 from -1 on
    for x in (-300.0, -256.0, -1.0, -0.01, 0.0, 0.3, 17.0, 256.0):
        f = np.sign(x) * np.log(abs(x) * 100 + 1) / np.log(256 * 100 + 1)
        want = 32_000 + min(int((min(max(f, -1), 1) + 1) / 2 * 1024), 1023)
        assert V.observed([x]).tolist() == [want]
    assert V.buttons([0, 5]).tolist() == [0, 5]


@given(st.lists(st.floats(-256, 256), min_size=1, max_size=8))
def test_numbers_come_back_to_within_a_bin(values: list[float]) -> None:
    ids = V.observed(values)
    assert V.observed(V.observation(ids)).tolist() == ids.tolist()
    order = np.argsort(values, kind="stable")
    assert (np.diff(ids[order]) >= 0).all()
    assert np.abs(V.command(V.commanded(np.asarray(values) / 256)) - np.asarray(values) / 256).max() <= 1 / 1024 + 1e-12


@pytest.mark.parametrize(
    ("act", "hint"),
    [
        (lambda: V.commanded([1.5]), "-1 to 1"),
        (lambda: V.observed([float("nan")]), "not finite"),
        (lambda: V.buttons([1024]), "whole numbers"),
        (lambda: V.command([5]), "ids from"),
        (lambda: Values(bins=1), "bins 2"),
    ],
)
def test_bad_numbers_are_errors(act: object, hint: str) -> None:
    with pytest.raises(TerakoyaError, match=hint):
        act()  # type: ignore[operator]


def test_an_eye_costs_nothing_where_texts_are_read() -> None:
    from terakoya.train.loop import flops_per_token

    seeing = lineage.sized("llava1.5/nano")
    blind = override(seeing, {"sight": None})
    assert flops_per_token(seeing, 128) == flops_per_token(blind, 128)


def test_the_native_program_leaves_gates_to_pytorch() -> None:
    from terakoya.engine.runner import runner

    small = override(lineage.rescale(lineage.base("llama"), 32, 2, 16), {"vocab": 50, "context": 64})
    gated = initialise(build(override(small, {"branch.gate": True})), 0)
    for model, family, problem in ((flamingo(), "flamingo", "Glance"), (gated, "llama", "gate")):
        with pytest.raises(TerakoyaError, match=problem):
            runner(convert.Loaded(model, None, family), by="native")
