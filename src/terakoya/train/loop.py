"""The training loop: batch, step, log, look, save. Resuming continues bit for bit."""

from __future__ import annotations

import copy
import logging
import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from terakoya import config, device
from terakoya.data import Batch, Loader, Shards
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import build, initialise
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.checkpoint import Checkpoint
from terakoya.train.objective import causal
from terakoya.train.objectives import EXTRA, Causal, Task, Taught
from terakoya.train.optim import Optimizer, Stepping
from terakoya.train.recipe import Budget, Keep, Recipe, resolve
from terakoya.train.run import Lines, Run
from terakoya.train.schedule import Schedule, factor
from terakoya.train.step import Objective, Stepped, step
from terakoya.train.writers import Track, opened
from terakoya.zoo import convert
from terakoya.zoo.config_json import in_their_words

log = logging.getLogger(__name__)

PATIENCE = 10  # steps in a row that may fail the finite gate before the run stops


@dataclass(frozen=True)
class Progress:
    """What a watcher is told after each step."""

    step: int  # steps done
    steps: int
    loss: float  # nats per token, or what the objective counts
    bits_per_byte: float  # nan where the objective has none
    tokens_per_second: float
    flops_per_second: float
    seconds: float
    heldout: float | None = None  # bits per byte


Watch = Callable[[Progress], None]


class Plan(Protocol):
    """The part of a recipe that the loop reads."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def keep(self) -> Keep: ...
    @property
    def compile(self) -> bool: ...


@dataclass(kw_only=True)
class Loop(ABC):
    """Batch, step, log, look, save: the same for every way of training. What differs is asked of the subclass."""

    run: Run
    model: Model
    optimizer: Stepping
    place: device.Device
    objective: Objective = causal
    start: int = 0
    skipped: int = 0
    track: tuple[Track, ...] = ()
    _stop: bool = field(default=False, repr=False)

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """The recipe."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps in all."""

    @abstractmethod
    def batches(self, step: int) -> Sequence[Batch]:
        """Return the micro-batches of `step` (from 0)."""

    @abstractmethod
    def look(self, limit: int | None) -> dict[str, float]:
        """Measure the model on what it has not seen, `limit` bytes at most; the first number is the one to show."""

    @abstractmethod
    def save(self, done: int) -> Path:
        """Write a checkpoint of `done` steps."""

    @abstractmethod
    def row(self, done: int, result: Stepped, micros: Sequence[Batch]) -> dict[str, Any]:
        """Return what metrics.jsonl says of a step beside its number, norm and factor."""

    def flops_per_token(self) -> float:
        """FLOPs of training on one token; 0 where unknown."""
        return 0.0

    def train(self, watch: Watch | None = None) -> bool:
        """Train to the end of the budget; False where a signal ended it early (a checkpoint holds what was done)."""
        metrics = Lines(self.run.folder / "metrics.jsonl", after=self.start)
        timing = Lines(self.run.folder / "timing.jsonl", after=self.start)
        began, failed = time.perf_counter(), 0
        forward = self._compiled()
        try:
            with self._signals(), opened(self.track, self.run.folder, self.start) as boards:
                for done in range(self.start, self.steps):
                    tick = time.perf_counter()
                    micros = [m.to(self.place.name) for m in self.batches(done)]
                    rate = factor(self.plan.schedule, done, self.steps)
                    result = self._step(forward, micros, rate)
                    failed = 0 if result.moved else failed + 1
                    self.skipped += not result.moved
                    row = self._row(done + 1, result, micros, rate)
                    seconds = time.perf_counter() - tick
                    tokens = sum(len(m.tokens) for m in micros)
                    heldout = self._look(done + 1, row)
                    for board in (metrics, *boards):
                        board.write(row)
                    timing.write({"step": done + 1, "seconds": seconds, "tokens_per_second": tokens / seconds})
                    if watch:
                        watch(self._progress(done + 1, row, tokens / seconds, time.perf_counter() - began, heldout))
                    stop = self._stop  # read once: a signal between two looks at it would end the run unsaved
                    if self._due(done + 1) or stop or failed >= PATIENCE or done + 1 == self.steps:
                        metrics.sync()
                        self.save(done + 1)
                    if failed >= PATIENCE:
                        seen = f"loss {result.loss}, gradient norm {result.norm}, weight {result.weight}"
                        raise TerakoyaError(
                            "training", f"{failed} steps in a row could not be taken ({seen})",
                            hint="lower optim.lr, or look at the data of these steps with: terakoya data show --step K",
                        )  # fmt: skip
                    if stop and done + 1 < self.steps:
                        return False
        finally:
            metrics.close()
            timing.close()
        return True

    def _step(self, forward: Objective, micros: Sequence[Batch], rate: float) -> Stepped:
        autocast = torch.bfloat16 if self.place.precision == "bf16" else None
        return step(self.model, micros, forward, self.optimizer, factor=rate, clip=self.plan.clip, autocast=autocast)

    def _compiled(self) -> Objective:
        """Compile each block once where the recipe asks for it; the objective itself stays plain."""
        if self.plan.compile:
            for layer in self.model.layers:
                layer.compile(dynamic=True)
        return self.objective

    def _due(self, done: int) -> bool:
        every = self.plan.keep.save
        return bool(every) and done % every == 0

    def _look(self, done: int, row: dict[str, Any]) -> float | None:
        every = self.plan.keep.evaluate
        last = done == self.steps
        if not last and not (every and done % every == 0):
            return None
        seen = self.look(None if last else self.plan.keep.evaluate_bytes)
        row |= seen
        return next(iter(seen.values()), None)

    def _row(self, done: int, result: Stepped, micros: Sequence[Batch], rate: float) -> dict[str, Any]:
        row = {"step": done} | self.row(done, result, micros) | {"norm": result.norm, "factor": rate}
        return row | result.metrics | ({} if result.moved else {"skipped": True})

    def _progress(self, done: int, row: dict[str, Any], rate: float, total: float, heldout: float | None) -> Progress:
        bits = row.get("bits_per_byte", math.nan)
        return Progress(done, self.steps, row["loss"], bits, rate, rate * self.flops_per_token(), total, heldout)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn SIGTERM and the first SIGINT into a checkpoint after the current step."""

        def ask(number: int, frame: object) -> None:
            self._stop = True
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one interrupts at once

        try:
            old = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: whoever owns the process owns its signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


@dataclass(kw_only=True)
class Trainer(Loop):
    """Pretraining: text in shards, a whole model in every checkpoint."""

    recipe: Recipe
    loader: Loader
    heldout: Shards
    tokenizer: Tokenizer
    task: Task

    @property
    def plan(self) -> Recipe:
        return self.recipe

    @property
    def steps(self) -> int:
        assert self.recipe.budget.steps is not None
        return self.recipe.budget.steps

    def batches(self, step: int) -> Sequence[Batch]:
        return self.task.arrange(self.loader.batch(step), step).split(self.recipe.rows.micro)

    def look(self, limit: int | None) -> dict[str, float]:
        plan, rows, seen = self.recipe.objective, self.recipe.rows, dict[str, float]()
        if plan.leftward:
            seen["heldout_bits_per_byte"] = evaluate(self.model, self.heldout, rows, self.place, limit)
        if not isinstance(plan, Causal):
            found = measure(self.model, self.task, self.heldout, rows, self.place, limit)
            seen |= {f"heldout_{name}": value for name, value in found.items()}
        return seen

    def row(self, done: int, result: Stepped, micros: Sequence[Batch]) -> dict[str, Any]:
        tokens = done * self.recipe.rows.count * self.recipe.rows.context
        if not isinstance(self.recipe.objective, Causal):
            return {"loss": result.loss, "tokens": tokens}
        bits = result.loss * result.weight / math.log(2) / max(sum(m.bytes for m in micros), 1)
        return {"loss": result.loss, "bits_per_byte": bits, "tokens": tokens}

    def _step(self, forward: Objective, micros: Sequence[Batch], rate: float) -> Stepped:
        result = super()._step(forward, micros, rate)
        share = result.weight or 1.0
        return replace(result, metrics={k: v / share for k, v in result.metrics.items()})

    def flops_per_token(self) -> float:
        return flops_per_token(self.model.spec, self.recipe.rows.context)

    def save(self, done: int) -> Path:
        """Write a checkpoint of `done` steps: a model folder that transformers opens, and the optimiser beside it."""
        model = bare(self.model)
        loaded = convert.Loaded(model, self.tokenizer, self.recipe.family)
        extra = {f"model/{name}": data for name, data in convert.config_files(loaded).items()}
        extra |= {f"model/{p.name}": p.read_bytes() for p in sorted(self.run.tokenizer.iterdir()) if p.is_file()}
        tensors = {
            "model/model": {n: t.contiguous().cpu() for n, t in convert.tensors(model, self.recipe.family).items()},
            "optimizer": {n: t.cpu() for n, t in self.optimizer.state().items()},
        }
        if beside := _beside(self.model):
            tensors[EXTRA] = {n: p.detach().contiguous().cpu() for n, p in beside.items()}
        meta = {"step": done, "skipped": self.skipped, "data": self.loader.fingerprint, "family": self.recipe.family}
        checkpoints = self.run.checkpoints(self.recipe.keep.count)
        path = checkpoints.save(done, tensors, meta, extra)
        checkpoints.prune()
        return path

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of this run."""
        if checkpoint.meta.get("data") != self.loader.fingerprint:
            raise TerakoyaError(str(checkpoint.path), "was trained on other data or in another order")
        weights = checkpoint.tensors("model/model")
        filled = convert.restored(self.model.spec, self.recipe.family, weights, str(checkpoint.path))
        bare(self.model).load_state_dict(filled.state_dict())
        if beside := _beside(self.model):
            kept = checkpoint.tensors(EXTRA)
            for name, p in beside.items():
                p.data.copy_(kept[name])
        self.optimizer.load(checkpoint.tensors("optimizer"))
        self.start = checkpoint.step
        skipped = checkpoint.meta.get("skipped", 0)
        self.skipped = skipped if isinstance(skipped, int) else 0


def prepare(run: Run, recipe: Recipe, teacher: convert.Loaded | None = None) -> Trainer:
    """Build or reload everything for a run whose tokenizer and shards are in its folder.

    `teacher` is the model that the objective names, where it names one.
    """
    device.keep_memory()
    place = device.choose(recipe.device, recipe.precision)
    tokenizer = Tokenizer.load(run.tokenizer)
    train = Shards.open(run.train, tokenizer.hash(), verify=True)
    heldout = Shards.open(run.heldout, tokenizer.hash(), verify=True)
    if run.resolved.exists():
        resolved = config.load_file(Recipe, run.resolved)
    else:
        resolved = resolve(recipe, tokenizer.vocab_size)
    loader = Loader(train, rows=resolved.rows.count, context=resolved.rows.context, seed=resolved.seed)
    assert isinstance(resolved.model, spec.Model)
    task = resolved.objective.task(tokenizer, resolved.model, resolved.seed)
    if isinstance(task, Taught):
        if teacher is None:
            raise TerakoyaError("objective.teacher", "must be opened first", given=task.plan.teacher)
        task.teach(teacher.model.to(place.name), teacher.tokenizer)
    if resolved.budget.minutes is not None:
        resolved = replace(resolved, budget=Budget(steps=_affordable(resolved, loader, task, place)))
    model, optimizer = fresh(resolved, place, task)
    if not run.resolved.exists():
        run.write("spec.toml", config.dump(resolved.model))
        run.write_json("environment.json", device.environment())
        run.write("resolved.toml", config.dump(resolved))  # last: where it stands, the others do too
    if in_their_words(model.spec, resolved.family) is None:
        log.warning("transformers has no words for this structure: its checkpoints open in terakoya alone")
    trainer = Trainer(
        run=run, recipe=resolved, model=model, optimizer=optimizer, loader=loader, heldout=heldout,
        tokenizer=tokenizer, place=place, objective=task.loss, task=task, track=resolved.track,
    )  # fmt: skip
    checkpoints = run.checkpoints(resolved.keep.count)
    if (checkpoint := checkpoints.latest()) is not None:
        trainer.resume(checkpoint)
        checkpoints.prune()  # what a kill between a save and its clean-up left
    return trainer


def fresh(recipe: Recipe, place: device.Device, task: Task | None = None) -> tuple[Model, Optimizer]:
    """Build an initialised model, what its objective needs beside it, and the optimiser."""
    assert isinstance(recipe.model, spec.Model)
    model = build(recipe.model)
    model = initialise(task.joined(model) if task else model, recipe.seed, recipe.init).to(place.name)
    return model, Optimizer(model, recipe.optim)


def bare(model: Model) -> Model:
    """Return the model without what its objective put beside it; the weights are the same tensors."""
    plain = copy.copy(model)
    plain._modules = {name: module for name, module in model._modules.items() if name != EXTRA}
    return plain


def _beside(model: Model) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if n.startswith(f"{EXTRA}.")}


def _affordable(recipe: Recipe, loader: Loader, task: Task, place: device.Device) -> int:
    """Measure a few steps of a throw-away model and return how many fit into the budget's minutes."""
    assert recipe.budget.minutes is not None
    model, optimizer = fresh(recipe, place, task)
    seconds = []
    for i in range(6):
        tick = time.perf_counter()
        micros = [m.to(place.name) for m in task.arrange(loader.batch(i), i).split(recipe.rows.micro)]
        autocast = torch.bfloat16 if place.precision == "bf16" else None
        step(model, micros, task.loss, optimizer, factor=0.1, clip=recipe.clip, autocast=autocast)
        device.synchronise(place)
        seconds.append(time.perf_counter() - tick)
    typical = sorted(seconds[1:])[len(seconds[1:]) // 2]
    return max(10, int(recipe.budget.minutes * 60 / typical))


@torch.inference_mode()
def evaluate(model: Model, shards: Shards, rows: Any, place: device.Device, limit: int | None = None) -> float:
    """Return bits per byte on shards: all of them, or the first `limit` bytes."""
    nats, size = 0.0, 0
    for batch in Loader(shards, rows=rows.count, context=rows.context, seed=0).evaluate():
        outcome = causal(model, batch.to(place.name))
        nats += outcome.loss.item()
        size += batch.bytes
        if limit is not None and size >= limit:
            break
    return nats / math.log(2) / max(size, 1)


@torch.inference_mode()
def measure(
    model: Model, task: Task, shards: Shards, rows: Any, place: device.Device, limit: int | None = None
) -> dict[str, float]:
    """Return the mean loss of an objective on shards, and its metrics; corrupted the same way at every look."""
    sums, weight, size = {"loss": 0.0}, 0.0, 0
    loader = Loader(shards, rows=rows.count, context=rows.context, seed=0)
    for i, batch in enumerate(loader.evaluate(spread=task.compares)):
        arranged = task.arrange(batch, -1 - i)
        size += batch.bytes
        if arranged.weight:
            outcome = task.loss(model, arranged.to(place.name))
            weight += arranged.weight
            for name, value in {"loss": outcome.loss.item(), **outcome.metrics}.items():
                sums[name] = sums.get(name, 0.0) + value
        if limit is not None and size >= limit:
            break
    return {name: value / max(weight, 1e-9) for name, value in sums.items()}


def flops_per_token(s: spec.Model, context: int) -> float:
    """Count training FLOPs per token: 6 per weight at work in a product, and causal attention at half the square."""
    from terakoya.model.build import count

    lookups = 0 if s.head.tied else s.vocab * (s.embed.factor or s.dim)
    lookups += s.context * s.dim if isinstance(s.embed.position, spec.Learned) else 0
    if isinstance(place := s.embed.position, spec.Axial):
        lookups += place.rows * place.dim + place.columns * (s.dim - place.dim)
    if s.sight is not None or s.embed.entities is not None:  # texts bring no pictures, and look entities up
        bare = replace(s, depth=1, blocks=(spec.Block(()),), layout=None, share=None, encoder=None)
        beside = build(bare, device="meta")
        for part in (beside.sight, beside.embed.entity):
            lookups += sum(p.numel() for p in part.parameters()) if part is not None else 0
    attention = idle = 0.0
    for block in s.layers():
        for a in config.select(block, "attention"):
            attention += 12 * a.heads * spec.head_dim(s, a) * context / 2
        for a in config.select(block, "latent"):
            attention += 6 * a.heads * (a.nope + a.rope + a.value) * context / 2
        for m in config.select(block, "moe"):
            idle += (m.count - m.top_k) * (3 if m.expert.gated else 2) * s.dim * m.expert.hidden
    return 6 * (count(s) - lookups - idle) + attention
