"""Our adapters in peft and peft's in ours: equal logits, equal gradients, equal training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.train.objective import causal
from terakoya.train.optim import AdamW, Optimizer
from terakoya.train.step import gradients, step
from terakoya.tune import adapters, peft
from terakoya.tune.adapters import IA3, Dora, Lora
from tests.tune.tune_fakes import loud
from tests.zoo.reference import pair, prompt

theirs_lib: Any = pytest.importorskip("peft", reason="peft is not installed")
pytestmark = pytest.mark.parity

PLANS = {
    "lora": Lora(4, 8.0),
    "some": Lora(4, 8.0, targets=("q", "down")),
    "rslora": Lora(4, 8.0, stabilised=True),
    "pissa": Lora(3, 8.0, init="pissa"),
    "dora": Dora(4, 8.0),
    "ia3": IA3(),
}
FAMILIES = ["llama", "gpt2", "gpt-neox", "mistral"]


def ours(name: str) -> Any:
    return copy.deepcopy(pair(name)[1])


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model.head(model(tokens, Packed([len(tokens)])))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_opens_ours(family: str, plan: str, tmp_path: Path) -> None:
    theirs, loaded, _ = pair(family)[0], ours(family), None
    if plan == "some" and family != "llama" and family != "mistral":
        plan_ = Lora(4, 8.0, targets=("o", "down"))
    elif plan == "ia3" and family in ("gpt2", "gpt-neox"):
        pytest.skip("IA3 on a fused layer is refused")
    else:
        plan_ = PLANS[plan]
    adapters.add(loaded.model, plan_)
    loud(loaded.model)
    tokens = prompt(12)
    want = logits(loaded.model, tokens)
    peft.save(loaded.model, loaded.family, tmp_path)
    opened = theirs_lib.PeftModel.from_pretrained(copy.deepcopy(theirs), str(tmp_path)).eval()
    with torch.no_grad():
        seen = opened(tokens[None]).logits[0]
        plain = theirs(tokens[None]).logits[0]
    assert (want - plain).abs().max() > 1e-2
    torch.testing.assert_close(seen, want.detach(), atol=3e-5, rtol=1e-4)
    again = ours(family)
    peft.load(again.model, again.family, tmp_path)
    torch.testing.assert_close(logits(again.model, tokens), want, atol=1e-5, rtol=1e-5)


CONFIGS = {
    "lora": {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"},
    "patterns": {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "use_rslora": True},
    "dora": {"r": 2, "lora_alpha": 5, "target_modules": "all-linear", "use_dora": True},
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ours_opens_pefts(family: str, config: str, tmp_path: Path) -> None:
    theirs, loaded = copy.deepcopy(pair(family)[0]), ours(family)
    torch.manual_seed(3)
    wrapped = theirs_lib.get_peft_model(
        theirs, theirs_lib.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2", **CONFIGS[config])
    ).eval()
    loud(wrapped, 5)
    tokens = prompt(12)
    with torch.no_grad():
        want = wrapped(tokens[None]).logits[0]
    wrapped.save_pretrained(str(tmp_path))
    peft.load(loaded.model, loaded.family, tmp_path)
    torch.testing.assert_close(logits(loaded.model, tokens), want, atol=3e-5, rtol=1e-4)
    assert not any(".adapters." in n for n in adapters.trained(loaded.model))


def batch(tokens: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Batch:
    n = len(tokens)
    return Batch(tokens, targets, weights, torch.tensor([0, n], dtype=torch.int32), torch.arange(n))


@pytest.mark.parametrize("plan", ["lora", "dora", "rslora"])
def test_gradients_and_ten_steps_equal_pefts(plan: str, tmp_path: Path) -> None:
    theirs, loaded = copy.deepcopy(pair("llama")[0]), ours("llama")
    chosen = PLANS[plan]
    adapters.add(loaded.model, chosen)
    loud(loaded.model)
    peft.save(loaded.model, loaded.family, tmp_path)
    wrapped = theirs_lib.PeftModel.from_pretrained(theirs, str(tmp_path), is_trainable=True)
    wrapped.train()
    ids = prompt(17)
    weights = (torch.arange(16) >= 6).float()
    mine = batch(ids[:-1], ids[1:], weights)
    labels = torch.where(torch.cat([torch.zeros(1), weights]) > 0, ids, torch.full_like(ids, -100))

    def their_loss() -> Any:
        return wrapped(ids[None], labels=labels[None]).loss

    def their_grads() -> dict[str, torch.Tensor]:
        return {n: p.grad.clone() for n, p in wrapped.named_parameters() if p.grad is not None}

    loss, _, _ = gradients(loaded.model, [mine], causal)
    their = their_loss()
    their.backward()
    assert abs(loss - their.item()) < 1e-6
    compared = 0
    for n, g in their_grads().items():
        path, _, leaf = n.removeprefix("base_model.model.model.").partition(".lora_")
        path = path.replace("self_attn", "attn").replace("_proj", "")
        own = dict(loaded.model.named_parameters())[
            f"{path}.adapters.default.{ {'A': 'a', 'B': 'b', 'm': 'm'}[leaf[0]] }"
        ]
        assert own.grad is not None
        assert (own.grad - g).abs().max() <= 1e-6 * max(1.0, g.abs().max().item())
        compared += 1
    assert compared == len(adapters.trained(loaded.model))

    optimizer = Optimizer(loaded.model, AdamW(lr=1e-3, weight_decay=0.0, betas=(0.9, 0.999)))
    rival = torch.optim.AdamW(
        [p for p in wrapped.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0, betas=(0.9, 0.999)
    )
    for _ in range(10):
        mean = step(loaded.model, [mine], causal, optimizer, factor=1.0, clip=None).loss
        rival.zero_grad()
        their = their_loss()
        their.backward()
        rival.step()
        assert abs(mean - their.item()) < 5e-6


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    loaded = ours("llama")
    adapters.add(loaded.model, Lora(2, 4.0))
    peft.save(loaded.model, loaded.family, tmp_path)
    path = tmp_path / peft.CONFIG
    good = json.loads(path.read_text(encoding="utf-8"))
    for change in (
        {"bias": "all"},
        {"peft_type": "PREFIX_TUNING"},
        {"r": 7},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa_niter_4"},
    ):
        path.write_text(json.dumps(good | change), encoding="utf-8")
        with pytest.raises(TerakoyaError, match=next(iter(change)) if "r" not in change else "rank"):
            peft.load(ours("llama").model, "llama", tmp_path)
    path.write_text(json.dumps(good), encoding="utf-8")
    with pytest.raises(TerakoyaError, match=r"no place for|wrong shape"):
        peft.load(ours("gpt2").model, "gpt2", tmp_path)
