"""A tuning run: the same loop, step and folder as pretraining, on a model that exists already."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from terakoya import config, device
from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.checkpoint import Checkpoint
from terakoya.train.loop import Loop, flops_per_token
from terakoya.train.optim import Optimizer
from terakoya.train.run import Run
from terakoya.train.step import Objective, Stepped
from terakoya.train.tensorfile import raw
from terakoya.tune import adapters, peft
from terakoya.tune.compare import replies
from terakoya.tune.distil import Distilled
from terakoya.tune.merge import divergence, merged
from terakoya.tune.methods import Distil, Gkd, Grpo, Ppo, Reward, Sft
from terakoya.tune.onpolicy import Corrected
from terakoya.tune.plans import ADDED, AdaLora, Added, Ahead
from terakoya.tune.ppo import Rewarded, add_critic
from terakoya.tune.preference import Judgements
from terakoya.tune.quantised import quantise
from terakoya.tune.ranks import SKEW, Ranks, orthogonal
from terakoya.tune.recipe import Budget, Tune
from terakoya.tune.recompute import recompute
from terakoya.tune.reinforce import Trials
from terakoya.tune.reward import NAME as SCORE
from terakoya.tune.reward import add_head, described
from terakoya.tune.sft import Lessons
from terakoya.tune.work import Remembers, Work
from terakoya.zoo import convert
from terakoya.zoo.convert import Loaded


@dataclass(kw_only=True)
class Tuner(Loop):
    """Post-training: any method, on a base of which all, some or nothing but adapters learn."""

    recipe: Tune
    work: Work
    loaded: Loaded
    tokenizer: Tokenizer
    base: str  # fingerprint of the weights it began with
    ranks: Ranks | None = None  # the budget of an AdaLoRA
    _live: bool = field(default=False, repr=False)
    _done: int = field(default=0, repr=False)

    @property
    def plan(self) -> Tune:
        return self.recipe

    @property
    def steps(self) -> int:
        return self.recipe.budget.counted(self.work.steps_per_epoch)

    @property
    def whole(self) -> bool:
        """Whether every weight learns."""
        return self.recipe.adapter is None

    def batches(self, step: int) -> Sequence[Batch]:
        batch = self.work.batch(step)
        return batch.split(min(self.recipe.rows.micro, len(batch.row_ends)))

    def look(self, limit: int | None) -> dict[str, float]:
        return self.work.look(self.model, self.place.name, limit)

    def row(self, done: int, result: Stepped, micros: Sequence[Batch]) -> dict[str, Any]:
        said: dict[str, Any] = {"loss": result.loss, "tokens": sum(len(m.tokens) for m in micros)}
        said |= self.work.stats
        size = sum(m.bytes for m in micros)
        return said | ({"bits_per_byte": result.loss * result.weight / math.log(2) / size} if size else {})

    def flops_per_token(self) -> float:
        full = flops_per_token(self.model.spec, self.recipe.rows.context)
        return full if self.whole else full * 2 / 3  # frozen weights have no gradient of their own

    def _step(self, forward: Objective, micros: Sequence[Batch], rate: float) -> Stepped:
        result = super()._step(forward, micros, rate)
        if not self._live:
            dead = [n for n, p in adapters.trained(self.model).items() if p.grad is None]
            if dead:
                raise TerakoyaError("training", f"{len(dead)} parameters receive no gradient: {', '.join(dead[:4])}")
            self._live = True
        share = result.weight or 1.0
        seen = {k: v / share for k, v in result.metrics.items()}
        if self.ranks is None:
            return replace(result, metrics=seen)
        self._done += 1
        if result.moved:
            self.ranks.update(self._done)
        seen["parts"] = float(sum(self.ranks.ranks().values()))
        return replace(result, loss=result.loss - self.ranks.plan.orthogonal * seen[SKEW], metrics=seen)

    def answers(self) -> list[dict[str, Any]]:
        """Answer the held-out prompts that the recipe shows."""
        show = self.recipe.show
        prompts = self.work.prompts[: show.count]
        return replies(self.model, self.tokenizer, prompts, tokens=show.tokens, template=self.recipe.data.template)

    def measured(self) -> dict[str, Any]:
        """Everything that is compared before and after."""
        return {"scores": self.look(None), "answers": self.answers()}

    def before(self) -> dict[str, Any]:
        """Measure the untouched model once; kept in the run's folder."""
        return self._once("before.json")

    def after(self) -> dict[str, Any]:
        """Measure the trained model, and what merging changes."""
        return self._once("after.json")

    def _once(self, name: str) -> dict[str, Any]:
        path = self.run.folder / name
        if not path.exists():
            seen = self.measured()
            if name == "after.json" and adapters.names(self.model):
                if adapters.mergeable(self.model):
                    seen["merge_divergence"] = divergence(self.model, merged(self.model), self._some())
                else:
                    seen["unmerged"] = adapters.UNMERGEABLE
            self.run.write_json(name, seen)
        return json.loads(path.read_text(encoding="utf-8"))

    def _some(self) -> Batch:
        return self.work.batch(0).to(self.place.name)

    def save(self, done: int) -> Path:
        """Write a checkpoint: what learns, the optimiser, the adapter in peft's format; at the end a merged model."""
        tensors = {"optimizer": {n: t.cpu() for n, t in self.optimizer.state().items()}}
        extra: dict[str, bytes] = {}
        if not self.whole:
            tensors["trained"] = {n: p.detach().cpu() for n, p in adapters.trained(self.model).items()}
        if adapters.names(self.model):
            said, parts = peft.files(self.model, self.loaded.family, base=self.recipe.model)
            tensors["adapter/adapter_model"], extra[f"adapter/{peft.CONFIG}"] = parts, said
        if isinstance(self.work, Remembers) and (kept := self.work.state()):
            tensors["work"] = kept
        if self.ranks is not None:
            tensors["ranks"] = {n: t.cpu() for n, t in self.ranks.state().items()}
        if (self.whole or done == self.steps) and adapters.mergeable(self.model):
            plain = merged(self.model)
            family = self.loaded.family
            weights = {n: t.contiguous().cpu() for n, t in convert.tensors(plain, family).items()}
            config = convert.config_files(Loaded(plain, self.tokenizer, family, self.loaded.config))
            if isinstance(self.recipe.method, Reward):
                weights[SCORE] = self.model.get_parameter(SCORE).detach().cpu()
                config["config.json"] = described(config["config.json"], self.tokenizer)
            tensors["model/model"] = weights
            extra |= {f"model/{name}": data for name, data in config.items()}
            extra |= {f"model/{p.name}": p.read_bytes() for p in sorted(self.run.tokenizer.iterdir()) if p.is_file()}
        meta = {"step": done, "skipped": self.skipped, "data": self.work.fingerprint, "base": self.base}
        checkpoints = self.run.checkpoints(self.recipe.keep.count)
        path = checkpoints.save(done, tensors, meta | {"family": self.loaded.family}, extra)
        checkpoints.prune()
        return path

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of this run."""
        for key, own in (("data", self.work.fingerprint), ("base", self.base)):
            if checkpoint.meta.get(key) != own:
                what = "other data, or in another order" if key == "data" else "another base model"
                raise TerakoyaError(str(checkpoint.path), f"was trained on {what}")
        if self.whole:
            weights = checkpoint.tensors("model/model")
            score = {SCORE: weights.pop(SCORE)} if SCORE in weights else {}
            filled = convert.restored(self.model.spec, self.loaded.family, weights, str(checkpoint.path))
            self.model.load_state_dict(filled.state_dict() | score)
        else:
            adapters.put(self.model, checkpoint.tensors("trained"), str(checkpoint.path))
        self.optimizer.load(checkpoint.tensors("optimizer"))
        if isinstance(self.work, Remembers):
            self.work.restore(checkpoint.tensors("work") if "work.safetensors" in checkpoint.files else {})
        if self.ranks is not None:
            self.ranks.restore(checkpoint.tensors("ranks"))
        self.start = self._done = checkpoint.step
        skipped = checkpoint.meta.get("skipped", 0)
        self.skipped = skipped if isinstance(skipped, int) else 0


def prepare(run: Run, recipe: Tune, loaded: Loaded, teacher: Loaded | None = None) -> Tuner:
    """Put the recipe's method on a model that was just opened, and go on from the run's last checkpoint.

    `teacher` is the second model that the method names, where it names one: who teaches or who judges.
    """
    device.keep_memory()
    place = device.choose(recipe.device, recipe.precision)
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise TerakoyaError(recipe.model, "has no tokenizer")
    if loaded.spec.sort != "decoder" and not (loaded.spec.sort == "encoder" and isinstance(recipe.method, Reward)):
        raise TerakoyaError("model", f"is an {loaded.spec.sort}, and this method teaches what continues a text",
                            given=recipe.model, hint="put a head on it: recipes head-*")  # fmt: skip
    context = loaded.spec.context
    if isinstance(recipe.adapter, Ahead):
        context -= recipe.adapter.tokens
        if context < 1:
            allowed = f"less than the model's context, {loaded.spec.context}"
            raise TerakoyaError("adapter.tokens", given=recipe.adapter.tokens, allowed=allowed)
    if recipe.rows.context > context:
        most = "the model's" if context == loaded.spec.context else "the model's less adapter.tokens,"
        raise TerakoyaError("rows.context", given=recipe.rows.context, allowed=f"at most {most} {context}")
    if isinstance(recipe.method, Reward) and isinstance(recipe.adapter, Ahead):
        raise TerakoyaError("adapter", "a reward model is kept as one model: its adapter must be mergeable",
                            allowed=["lora", "dora", "adalora", "ia3"])  # fmt: skip
    if not run.tokenizer.exists():
        tokenizer.save(run.tokenizer)
    model = loaded.model.to(place.name)
    base = fingerprint(model)
    if recipe.quantise != "none":
        if not isinstance(recipe.adapter, Added):
            problem = "a base of four or eight bits cannot learn by itself; it needs an adapter"
            raise TerakoyaError("quantise", problem, allowed=ADDED)
        quantise(model, recipe.quantise)
    adapters.prepare(model, recipe.adapter, seed=recipe.seed)
    if adapters.names(model):
        peft.export(model, loaded.family)  # what cannot be written is refused before the first step
    if isinstance(recipe.method, Reward):
        add_head(model, recipe.seed)
    if isinstance(recipe.method, Ppo):
        if not isinstance(recipe.adapter, Added) or isinstance(recipe.adapter, AdaLora):
            raise TerakoyaError("adapter", "ppo needs the base under an adapter, as its reference and for its critic",
                                allowed=[a for a in ADDED if a != "adalora"])  # fmt: skip
        add_critic(model, recipe.adapter, recipe.seed)
    if recipe.recompute:
        recompute(model)
    work = made(recipe, model, tokenizer, place.name, run.folder, teacher)
    optimizer = Optimizer(model, recipe.optim, adapters.gains(model))
    if not (run.folder / "environment.json").exists():
        run.write_json("environment.json", device.environment())
    tuner = Tuner(
        run=run, model=model, optimizer=optimizer, place=place, objective=work.objective, recipe=recipe, work=work,
        loaded=loaded, tokenizer=tokenizer, base=base,
    )  # fmt: skip
    if isinstance(recipe.adapter, AdaLora):
        tuner.ranks = Ranks(model, recipe.adapter, tuner.steps)
        tuner.objective = orthogonal(tuner.objective, recipe.adapter)
    if not run.resolved.exists():
        run.write("resolved.toml", config.dump(replace(recipe, budget=Budget(steps=tuner.steps))))
    if (checkpoint := run.checkpoints(recipe.keep.count).latest()) is not None:
        tuner.resume(checkpoint)
    return tuner


def made(recipe: Tune, model: Model, tokenizer: Tokenizer, place: str, folder: Path, teacher: Loaded | None) -> Work:
    """Read the examples and set up the method."""
    match recipe.method:
        case Sft():
            return Lessons(recipe, tokenizer)
        case Distil() as plan:
            return Distilled(recipe, plan, tokenizer, teacher, folder, place)
        case Gkd() as plan:
            return Corrected(recipe, plan, model, tokenizer, teacher, place)
        case Grpo() as plan:
            return Trials(recipe, plan, model, tokenizer, place)
        case Ppo() as plan:
            return Rewarded(recipe, plan, model, tokenizer, teacher, place)
        case plan:
            return Judgements(recipe, plan, model, tokenizer, place)


@torch.no_grad()
def fingerprint(model: Model) -> str:
    """Hash all weights."""
    made = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        made.update(f"{name} {zlib.crc32(raw(tensor))}\n".encode())
    return made.hexdigest()
