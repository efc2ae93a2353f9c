"""On a GPU: the kernels themselves, the recordings and the products, against the generic path on the same device.

Run with `pytest -m gpu tests/engine/test_gpu.py`. Nothing here has run on one yet.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from terakoya.config import override
from terakoya.engine.cuda import CudaRunner
from terakoya.engine.engine import Engine
from terakoya.engine.fused import Fused, Kernels
from terakoya.engine.paged import Paged
from terakoya.engine.request import Request
from terakoya.engine.runner import TorchRunner
from terakoya.engine.step import Notes, Step, numbers, size_of
from terakoya.model import spec
from terakoya.model.position import Alibi, Buckets
from terakoya.quant.codecs import FP8, Codec, Int4, Int8
from terakoya.quant.fused import SAID, enable, trial, way
from terakoya.quant.linear import PackedLinear, quantise
from terakoya.zoo.convert import Loaded
from tests.engine.engine_fakes import byte_tokenizer
from tests.engine.engine_laws import asked, empty
from tests.engine.test_cuda import LOOKS, scattered
from tests.engine.test_paged import prompts
from tests.model import small

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
BFLOAT = torch.bfloat16
WIDE = spec.Model(
    small.VOCAB, 256, 2, 1024, (spec.pre(small.NORM, small.attention(kv_heads=2), spec.MLP(512, "silu", gated=True)),)
)  # heads of 64: the kernels refuse some smaller ones


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Let single precision be single precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.parametrize("name", LOOKS)
def test_kernels_see_what_the_generic_path_sees(name: str) -> None:
    (kind, look), rng = LOOKS[name], random.Random(name)
    dtype = BFLOAT if kind == "flash" else torch.float32
    for round in range(4):
        torch.manual_seed(round)
        held = [rng.choice([0, 5, 16, 200, 600]) for _ in range(rng.randrange(1, 5))]
        store, parts = scattered(rng, look, held, width=64, dtype=dtype, device=cuda())
        T = sum(p.count for p in parts)
        q, k, v = (torch.randn(T, n, 64, device="cuda", dtype=dtype) for n in (8, 2, 2))
        bias, sinks = None, None
        if kind == "flex":
            buckets = Buckets(spec.Buckets(8, 30), 8).cuda()
            torch.nn.init.normal_(buckets.weight)
            bias = [None, Alibi(spec.Alibi(), 8, 0.3), Alibi(spec.Alibi(rounded=True), 8, 0.3), buckets][round]
            sinks = [None, torch.randn(8, device="cuda")][round % 2]
        with torch.inference_mode():
            wanted = Paged(store, parts, cuda()).attend(0, q, k, v, look, bias, sinks)
            size = size_of(store, parts)
            ids = [[0] * p.count for p in parts]
            step = Step.of(size, numbers(store, parts, ids, size), Notes.of(store, cuda()))
            found = Fused(store, parts, step, Kernels.of(cuda()), {0: kind}).attend(0, q, k, v, look, bias, sinks)
        near = {"atol": 2e-2, "rtol": 2e-2} if dtype == BFLOAT else {"atol": 1e-4, "rtol": 1e-4}
        assert torch.allclose(found, wanted, **near)


@pytest.mark.parametrize(
    "changes",
    [{}, {"mixer.reach": spec.Window(40)}, {"mixer.position": spec.Alibi()}, {"mixer.softcap": 5.0},
     {"mixer.sinks": True}],
    ids=["plain", "window", "alibi", "softcap", "sinks"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [BFLOAT, torch.float32], ids=["bfloat16", "float32"])
def test_an_engine_answers_as_without_kernels(changes: dict[str, object], dtype: torch.dtype) -> None:
    """Recordings too: what each token was given, within rounding; and in fp32 the very same answers."""
    model = small.made(override(WIDE, changes)).to("cuda", dtype)
    loaded = Loaded(model, byte_tokenizer(), "test")
    requests = [asked(p, 40) for p in prompts(3, 300, 7, 90, 33, 512)]
    requests = [
        Request(tuple(i % small.VOCAB for i in r.prompt), r.sampling, logprobs=0, ignore_end=True) for r in requests
    ]
    answers = []
    for plain in (False, True):
        engine = Engine(loaded, memory_bytes=64 << 20, threaded=False, max_tokens_per_step=256)
        assert isinstance(engine.runner, CudaRunner)
        assert "not used" not in engine.runner.words
        if plain:
            engine.runner = TorchRunner(model)
        else:
            fast = engine.runner
        answers.append([done for [done] in engine.generate(requests)])
        empty(engine)
    assert fast.graphs is not None
    assert not fast.graphs.refused
    assert fast.graphs._kept
    for mine, theirs in zip(*answers, strict=True):
        if dtype == torch.float32:
            assert mine.ids == theirs.ids
        same = next((i for i, (a, b) in enumerate(zip(mine.ids, theirs.ids, strict=True)) if a != b), len(mine.ids))
        assert same, "the very first token is another"
        for a, b in zip(mine.logprobs[:same], theirs.logprobs[:same], strict=True):
            assert abs(a.logprob - b.logprob) < (0.3 if dtype == BFLOAT else 1e-3)


def test_company_changes_no_bit() -> None:
    """Deterministic: the answers of one alone, and of the same among others."""
    model = small.made(WIDE).to("cuda", BFLOAT)
    engine = Engine(Loaded(model, byte_tokenizer(), "test"), memory_bytes=64 << 20, threaded=False, deterministic=True)
    texts = [asked([i % small.VOCAB for i in p], 20) for p in prompts(3, 600, 12, 90)]
    alone = [engine.generate([t])[0][0] for t in texts]
    together = [done for [done] in engine.generate(texts)]
    for a, b in zip(alone, together, strict=True):
        assert [p.logprob for p in a.logprobs] == [p.logprob for p in b.logprobs]


@pytest.mark.parametrize("codec", [Int4(32), Int4(128), Int8(32), Int8(0), FP8()], ids=str)
@pytest.mark.parametrize("dtype", [BFLOAT, torch.float16, torch.float32], ids=["bfloat16", "float16", "float32"])
def test_packed_products(codec: Codec, dtype: torch.dtype) -> None:
    model = quantise(small.made(WIDE), codec).to("cuda", dtype)
    layers = [m for m in model.modules() if isinstance(m, PackedLinear)]
    for layer in layers:
        if way(layer) not in SAID:
            pytest.skip(f"on this machine: {way(layer)}")
        assert trial(layer) == ""
    layer = layers[0]
    x = torch.randn(17, layer.shape[1], device="cuda", dtype=dtype)
    wanted = x.float() @ layer.dense().T
    assert "as numbers" not in enable(model)
    found = layer(x)
    bias = 0 if layer.bias is None else layer.bias.float()
    assert found.dtype == dtype
    assert norm_of(found.float() - bias - wanted, wanted) < (0.05 if isinstance(codec, FP8) else 0.02)


def norm_of(off: Tensor, whole: Tensor) -> float:
    return float(off.norm() / whole.norm())
