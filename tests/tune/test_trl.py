"""Against trl itself: its trainers' own loss functions on the same weights and the same batch."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from terakoya.model.model import Model
from terakoya.train.step import gradients
from terakoya.tune.methods import Dpo, Grpo, Ipo, Preference
from terakoya.tune.pack import laid, plain
from terakoya.tune.preference import Judged, objective
from terakoya.tune.reinforce import advantages
from terakoya.tune.reinforce import objective as reinforced
from terakoya.tune.rollout import Rollout, rolled
from terakoya.tune.score import sums, token_scores
from terakoya.zoo import convert
from tests.tune.test_data import some_samples
from tests.tune.tune_fakes import folder, loud, tokenizer

trl: Any = pytest.importorskip("trl", reason="trl is not installed")
transformers: Any = pytest.importorskip("transformers")
datasets: Any = pytest.importorskip("datasets")
pytestmark = pytest.mark.parity
COMMON: dict[str, Any] = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}


def pair(path: Path) -> tuple[Any, Any, Model, Model]:
    """The policy and its reference, theirs and ours, with the same weights."""
    theirs, ours = [], []
    for name in ("policy", "reference"):
        place = folder(path / name)
        loaded = convert.load(place)
        if name == "policy":
            loaded.model.requires_grad_(True)
            loud(loaded.model, 4, 0.02)
            convert.save(loaded, place)
        ours.append(loaded.model)
        theirs.append(transformers.AutoModelForCausalLM.from_pretrained(place))
    return theirs[0], theirs[1], ours[0], ours[1]


def words(path: Path) -> Any:
    file = str(path / "policy" / "tokenizer.json")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=file, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>"
    )


def same_gradients(theirs: Any, ours: Model) -> None:
    seen = dict(ours.named_parameters())
    names = {
        "model.embed_tokens.weight": "embed.token.weight", "model.norm.weight": "norm.weight",
        "model.layers.0.self_attn.q_proj.weight": "layers.0.attn.q.weight",
        "model.layers.1.mlp.down_proj.weight": "layers.1.mlp.down.weight",
    }  # fmt: skip
    other = dict(theirs.named_parameters())
    for name, mine in names.items():
        own, their = seen[mine].grad, other[name].grad
        assert own is not None
        assert their.abs().max() > 1e-4  # or the comparison would say nothing
        assert (own - their).abs().max() <= 1e-6


@pytest.mark.parametrize(("plan", "kind"), [(Dpo(0.3), "sigmoid"), (Ipo(0.3), "ipo")], ids=["dpo", "ipo"])
def test_preference_losses_and_gradients_are_its_trainers(plan: Preference, kind: str, tmp_path: Path) -> None:
    policy, reference, ours, base = (m.double() for m in pair(tmp_path))  # sums of tokens are large beside 1e-6
    samples = some_samples(8, seed=3)
    ends = [sum(s.length for s in samples[: 2 * i + 2]) for i in range(4)]
    flat = laid(samples, tuple(ends))
    with torch.no_grad():
        before = sums(token_scores(base, flat), flat)[0]
    batch = Judged(**plain(flat), liked=torch.tensor([1.0, 0.0] * 4), reference=before)
    loss, _, _ = gradients(ours, [batch], objective(plan))

    config = trl.DPOConfig(output_dir=str(tmp_path / "out"), beta=0.3, loss_type=[kind], **COMMON)
    rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
    trainer = trl.DPOTrainer(policy, reference, config, train_dataset=rows, processing_class=words(tmp_path))
    ordered = [*samples[0::2], *samples[1::2]]  # theirs has all chosen ones first
    size = max(len(s.ids) for s in ordered)
    ids, mask, counted = (torch.zeros(8, size, dtype=torch.long) for _ in range(3))
    for i, s in enumerate(ordered):
        ids[i, : len(s.ids)], mask[i, : len(s.ids)] = torch.tensor(s.ids), 1
        counted[i, : len(s.ids)] = torch.tensor([int(w > 0) for w in s.weights])
    inputs = {"input_ids": ids, "attention_mask": mask, "completion_mask": counted}
    trainer.model.train()
    want = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
    want.backward()
    assert loss == pytest.approx(want.item(), abs=1e-6)
    same_gradients(policy, ours)


GROUPS = 2
NORMS = [("answer", "grpo"), ("tokens", "dapo"), ("most", "dr_grpo")]


def grpo(path: Path, policy: Any, kind: str, beta: float, scores: list[float], scale: str = "group") -> Any:
    def judge(completions: list[str], **_: Any) -> list[float]:
        return scores

    config = trl.GRPOConfig(
        output_dir=str(path / "out"), num_generations=4, per_device_train_batch_size=4 * GROUPS, loss_type=kind,
        gradient_accumulation_steps=1, beta=beta, max_completion_length=6, scale_rewards=scale, temperature=1.0,
        epsilon=0.2, top_k=0, use_bias_correction_kl=False, **COMMON,
    )  # fmt: skip
    rows = datasets.Dataset.from_list([{"prompt": t} for t in ("one and", "the lesson")] * 4)
    trainer = trl.GRPOTrainer(policy, judge, config, train_dataset=rows, processing_class=words(path))
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def drawn(seed: int = 0) -> tuple[list[list[int]], list[list[Rollout]]]:
    g = torch.Generator().manual_seed(seed)
    vocab = tokenizer().vocab_size

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocab, (n,), generator=g).tolist())

    prompts = [list(ids(n)) for n in (5, 8)]
    groups = []
    for _ in prompts:
        lengths = torch.randint(2, 7, (4,), generator=g).tolist()
        groups.append(
            [Rollout(a := ids(n), tuple((-5 - torch.rand(n, generator=g)).tolist()), "", bool(a)) for n in lengths]
        )
    return prompts, groups


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize(("norm", "kind"), NORMS)
def test_grpo_losses_and_gradients_are_its_trainers(
    norm: Literal["answer", "tokens", "most"], kind: str, beta: float, tmp_path: Path
) -> None:
    policy, _, ours, base = pair(tmp_path)
    plan = Grpo(group=4, tokens=6, norm=norm, beta=beta)
    prompts, groups = drawn()
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 1.0, 1.0]])
    gain = advantages(rewards, plan)
    every = [r for g in groups for r in g]
    count = sum(len(r.ids) for r in every)
    total = {"answer": float(len(every)), "tokens": float(count), "most": float(len(every) * 6)}[norm]
    batch = rolled(prompts, groups, gain, total)
    vocab = tokenizer().vocab_size
    with torch.no_grad():
        reference = batch.scores(base, 1.0, vocab)
    batch = replace(batch, reference=reference)
    loss, _, _ = gradients(ours, [batch], reinforced(plan, vocab))

    trainer = grpo(tmp_path, policy, kind, beta, [])
    inputs = padded(prompts, groups, reference)
    inputs |= {"advantages": gain.flatten(), "num_items_in_batch": torch.tensor(float(count))}
    want = trainer._compute_loss(trainer.model, inputs)
    want.backward()
    assert loss == pytest.approx(want.item(), abs=1e-6)
    same_gradients(policy, ours)


def padded(prompts: list[list[int]], groups: list[list[Rollout]], reference: Tensor) -> dict[str, Tensor]:
    """Prompts to the left, answers to the right, as theirs wants them."""
    every = [(p, r) for p, g in zip(prompts, groups, strict=True) for r in g]
    left, right = max(map(len, prompts)), max(len(r.ids) for _, r in every)
    before, seen = (torch.zeros(len(every), left, dtype=torch.long) for _ in range(2))
    after, mask = (torch.zeros(len(every), right, dtype=torch.long) for _ in range(2))
    old, ref = (torch.zeros(len(every), right) for _ in range(2))
    at = 0
    for i, (prompt, r) in enumerate(every):
        n = len(r.ids)
        before[i, left - len(prompt) :], seen[i, left - len(prompt) :] = torch.tensor(prompt), 1
        after[i, :n], mask[i, :n] = torch.tensor(r.ids), 1
        old[i, :n], ref[i, :n] = torch.tensor(r.logprobs), reference[at : at + n]
        at += n
    return {
        "prompt_ids": before, "prompt_mask": seen, "completion_ids": after, "completion_mask": mask,
        "old_per_token_logps": old, "ref_per_token_logps": ref,
    }  # fmt: skip


@pytest.mark.parametrize("scale", ["group", "none"])
def test_grpo_advantages_are_its_trainers(scale: Literal["group", "none"], tmp_path: Path) -> None:
    policy = pair(tmp_path)[0]
    scores = [1.0, 0.0, 0.5, 0.0, 0.0, 1.0, 1.0, 1.0]
    trainer = grpo(tmp_path, policy, "grpo", 0.0, scores, scale)
    asked = [{"prompt": t} for t in ("one and", "the lesson") for _ in range(4)]
    seen = trainer._generate_and_score_completions(copy.deepcopy(asked))["advantages"]
    mine = advantages(torch.tensor(scores).view(2, 4), Grpo(group=4, scale=scale)).flatten()
    assert (mine - seen).abs().max() <= 1e-6
