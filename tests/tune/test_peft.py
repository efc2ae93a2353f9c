"""Our adapters in peft and peft's in ours: equal logits, equal gradients, equal training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.train.objective import causal
from terakoya.train.optim import AdamW, Optimizer
from terakoya.train.step import gradients, step
from terakoya.tune import adapters, peft
from terakoya.tune.plans import IA3, AdaLora, Dora, Lora, Prefix, Prompt, PTuning
from terakoya.tune.ranks import Ranks, orthogonal
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
    "adalora": AdaLora(rank=4, target=2, alpha=8.0),
    "prefix": Prefix(5),
    "projected": Prefix(5, hidden=6),
    "prompt": Prompt(5),
    "ptuning": PTuning(5, hidden=6),
    "mlp": PTuning(4, encoder="mlp", hidden=6),
}
AHEAD = ("prefix", "projected", "prompt", "ptuning", "mlp")
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
    else:
        plan_ = PLANS[plan]
    adapters.add(loaded.model, plan_)
    loud(loaded.model)
    tokens = prompt(12)
    want = logits(loaded.model, tokens)
    peft.save(loaded.model, loaded.family, tmp_path)
    opened = theirs_lib.PeftModel.from_pretrained(copy.deepcopy(theirs), str(tmp_path)).eval()
    with torch.no_grad():
        seen = opened(tokens[None]).logits[0][-12:]  # theirs has logits of virtual tokens too
        plain = theirs(tokens[None]).logits[0]
    assert (want - plain).abs().max() > (1e-3 if plan in AHEAD else 1e-2)
    torch.testing.assert_close(seen, want.detach(), atol=3e-5, rtol=1e-4)
    again = ours(family)
    peft.load(again.model, again.family, tmp_path)
    torch.testing.assert_close(logits(again.model, tokens), want, atol=1e-5, rtol=1e-5)


CONFIGS = {
    "lora": {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"},
    "patterns": {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "use_rslora": True},
    "dora": {"r": 2, "lora_alpha": 5, "target_modules": "all-linear", "use_dora": True},
}
OTHERS = {
    "adalora": ("AdaLoraConfig", {"init_r": 3, "target_r": 2, "lora_alpha": 5, "total_step": 9}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 5}),
    "projected": ("PrefixTuningConfig", {"num_virtual_tokens": 5, "prefix_projection": True, "encoder_hidden_size": 8}),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 5}),
    "ptuning": ("PromptEncoderConfig", {"num_virtual_tokens": 4, "encoder_hidden_size": 8}),
    "lstm": ("PromptEncoderConfig", {"num_virtual_tokens": 4, "encoder_hidden_size": 8,
                                     "encoder_reparameterization_type": "LSTM"}),
}  # fmt: skip


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


@pytest.mark.parametrize("config", OTHERS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ours_opens_pefts_other_kinds(family: str, config: str, tmp_path: Path) -> None:
    theirs, loaded = copy.deepcopy(pair(family)[0]), ours(family)
    torch.manual_seed(3)
    kind, said = OTHERS[config]
    if kind == "AdaLoraConfig":
        said = said | {"target_modules": "all-linear", "fan_in_fan_out": family == "gpt2"}
    wrapped = theirs_lib.get_peft_model(theirs, getattr(theirs_lib, kind)(task_type="CAUSAL_LM", **said)).eval()
    loud(wrapped, 5, 0.3)
    if kind == "AdaLoraConfig":  # two parts of every layer are kept, and saved
        names = [n for n, _ in wrapped.named_parameters() if "lora_E" in n]
        pattern = {n.removeprefix("base_model.model."): [True, False, True] for n in names}
        wrapped.peft_config["default"].rank_pattern = pattern
        for n, p in wrapped.named_parameters():
            if n in names:
                p.data[1] = 0
    tokens = prompt(12)
    with torch.no_grad():
        want = wrapped(tokens[None]).logits[0][-12:]
    wrapped.save_pretrained(str(tmp_path))
    peft.load(loaded.model, loaded.family, tmp_path)
    torch.testing.assert_close(logits(loaded.model, tokens), want, atol=3e-5, rtol=1e-4)
    assert not any("adapters." in n for n in adapters.trained(loaded.model))


def test_adalora_gives_up_what_pefts_gives_up(tmp_path: Path) -> None:
    theirs, loaded = copy.deepcopy(pair("llama")[0]), ours("llama")
    plan = AdaLora(rank=4, target=2, alpha=8.0, warmup=1 / 8, last=2 / 8, orthogonal=0.2)
    adapters.add(loaded.model, plan)
    peft.save(loaded.model, loaded.family, tmp_path)
    wrapped = theirs_lib.get_peft_model(theirs, theirs_lib.AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=4, target_r=2, lora_alpha=8, tinit=1, tfinal=2, total_step=8, orth_reg_weight=0.2,
        target_modules="all-linear",
    ))  # fmt: skip
    theirs_lib.set_peft_model_state_dict(wrapped, load_file(tmp_path / peft.WEIGHTS))
    ids = prompt(17)
    mine = batch(ids[:-1], ids[1:], torch.ones(16))
    optimizer = Optimizer(loaded.model, AdamW(lr=1e-2, weight_decay=0.0, betas=(0.9, 0.999)))
    ranks, objective = Ranks(loaded.model, plan, 8), orthogonal(causal, plan)
    rival = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for done in range(1, 7):
        loss = step(loaded.model, [mine], objective, optimizer, factor=1.0, clip=None).loss
        ranks.update(done)
        rival.zero_grad()
        their = wrapped(ids[None], labels=ids[None]).loss
        their.backward()
        rival.step()
        wrapped.base_model.update_and_allocate(done)
        assert abs(loss - their.item()) < 5e-6
    seen = dict(wrapped.named_parameters())
    for path, kept in ranks.kept.items():
        name = path.replace("layers", "base_model.model.model.layers", 1).replace("attn", "self_attn")
        part = seen[f"{name}_proj.lora_E.default"].flatten()
        assert torch.equal(part != 0, kept)
        torch.testing.assert_close(part.detach(), ranks.parts[path].e.detach(), atol=2e-6, rtol=1e-4)
    assert sum(ranks.ranks().values()) == 2 * len(ranks.kept)


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

    def compare() -> None:
        """Go forward and back on both sides; loss and gradients are the same."""
        for p in (*loaded.model.parameters(), *wrapped.parameters()):
            p.grad = None
        loss, _, _ = gradients(loaded.model, [mine], causal)
        their = their_loss()
        their.backward()
        assert abs(loss - their.item()) <= 1e-6
        compared, own = 0, dict(loaded.model.named_parameters())
        for n, g in their_grads().items():
            path, _, leaf = n.removeprefix("base_model.model.model.").partition(".lora_")
            path = path.replace("self_attn", "attn").replace("_proj", "")
            mine_ = own[f"{path}.adapters.default.{ {'A': 'a', 'B': 'b', 'm': 'm'}[leaf[0]] }"].grad
            assert mine_ is not None
            assert g.abs().max() > 1e-5  # or the comparison would say nothing
            assert (mine_ - g).abs().max() <= 1e-6
            compared += 1
        assert compared == len(adapters.trained(loaded.model))

    compare()
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
        assert abs(mean - their.item()) <= 1e-6
    compare()


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    loaded = ours("llama")
    adapters.add(loaded.model, Lora(2, 4.0))
    peft.save(loaded.model, loaded.family, tmp_path)
    path = tmp_path / peft.CONFIG
    good = json.loads(path.read_text(encoding="utf-8"))
    for change in (
        {"bias": "all"},
        {"peft_type": "LOHA"},
        {"r": 7},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa_niter_4"},
        {"lora_alpha": None},
    ):
        path.write_text(json.dumps(good | change), encoding="utf-8")
        with pytest.raises(TerakoyaError, match=next(iter(change)) if "r" not in change else "rank"):
            peft.load(ours("llama").model, "llama", tmp_path)
    path.write_text(json.dumps(good), encoding="utf-8")
    with pytest.raises(TerakoyaError, match=r"no place for|wrong shape"):
        peft.load(ours("gpt2").model, "gpt2", tmp_path)
