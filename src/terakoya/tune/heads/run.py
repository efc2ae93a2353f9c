"""A run that puts a head on a model: the same loop, step and folder as all training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from terakoya import config, device
from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.build import parameters
from terakoya.model.elmo import ElmoVectors
from terakoya.ngram.model import NGram
from terakoya.tokenizer import Tokenizer
from terakoya.train import own
from terakoya.train.checkpoint import Checkpoint
from terakoya.train.kept import CONFIG, restore, written
from terakoya.train.loop import Loop, bare, flops_per_token
from terakoya.train.optim import Optimizer
from terakoya.train.run import Run
from terakoya.train.step import Stepped
from terakoya.train.ulmfit import by_layer, groups, unfreeze
from terakoya.tune.heads.deep import Deep
from terakoya.tune.heads.head import attach, described, head_of
from terakoya.tune.heads.recipe import Fit
from terakoya.tune.heads.work import Headed
from terakoya.tune.recipe import Budget
from terakoya.zoo import convert
from terakoya.zoo.convert import Loaded


@dataclass(kw_only=True)
class Fitter(Loop):
    """A head, and the model below it unless it is only probed."""

    recipe: Fit
    work: Headed
    loaded: Loaded
    tokenizer: Tokenizer

    @property
    def plan(self) -> Fit:
        return self.recipe

    @property
    def steps(self) -> int:
        return self.recipe.budget.counted(self.work.steps_per_epoch)

    def batches(self, step: int) -> Sequence[Batch]:
        head_of(self.model).noise.begin(self.recipe.seed, step)
        if self.recipe.gradual:
            unfreeze(self.model, groups(self.model), step // self.work.steps_per_epoch)
        return self.work.batch(step).split(self.recipe.rows.micro)

    def look(self, limit: int | None) -> dict[str, float]:
        head_of(self.model).noise.end()
        return {f"heldout_{n}": v for n, v in self.work.look(self.model, self.place.name, limit).items()}

    def row(self, done: int, result: Stepped, micros: Sequence[Batch]) -> dict[str, Any]:
        return {"loss": result.loss, "tokens": sum(len(m.tokens) for m in micros)}

    def flops_per_token(self) -> float:
        if own.said(self.model) is not None:
            return 0.0
        return flops_per_token(self.model.spec, self.recipe.rows.context) * (1 / 3 if self.recipe.probe else 1)

    def save(self, done: int) -> Path:
        """Write a checkpoint: a plain model folder, the head beside it, the optimiser."""
        model, family = bare(self.model), self.loaded.family
        head = head_of(self.model)
        told = own.said(model)
        weights = convert.tensors(model, family) if told is None else model.state_dict()
        tensors = {
            "model/model": {n: t.contiguous().cpu() for n, t in weights.items()},
            "optimizer": {n: t.cpu() for n, t in self.optimizer.state().items()},
        }
        extra = {"head/head.json": described(head.card)}
        if parts := {n: t.detach().cpu() for n, t in head.state_dict().items()}:
            tensors["head/model"] = parts
        loaded = Loaded(model, self.tokenizer, family, self.loaded.config)
        files = convert.config_files(loaded) if told is None else {CONFIG: written(told)}
        extra |= {f"model/{name}": data for name, data in files.items()}
        extra |= {f"model/{p.name}": p.read_bytes() for p in sorted(self.run.tokenizer.iterdir()) if p.is_file()}
        meta = {"step": done, "skipped": self.skipped, "data": self.work.fingerprint, "family": family}
        checkpoints = self.run.checkpoints(self.recipe.keep.count)
        path = checkpoints.save(done, tensors, meta, extra)
        checkpoints.prune()
        return path

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of this run."""
        if checkpoint.meta.get("data") != self.work.fingerprint:
            raise TerakoyaError(str(checkpoint.path), "was trained on other examples, or in another order")
        weights = checkpoint.tensors("model/model")
        model = bare(self.model)
        if own.said(model) is not None:
            restore(model, weights, str(checkpoint.path))
        else:
            filled = convert.restored(model.spec, self.loaded.family, weights, str(checkpoint.path))
            model.load_state_dict(filled.state_dict())
        if (head := head_of(self.model)).out is not None:
            head.load_state_dict(checkpoint.tensors("head/model"))
        self.optimizer.load(checkpoint.tensors("optimizer"))
        self.start = checkpoint.step
        skipped = checkpoint.meta.get("skipped", 0)
        self.skipped = skipped if isinstance(skipped, int) else 0


def prepare(run: Run, recipe: Fit, loaded: Loaded) -> Fitter:
    """Put the recipe's head on a model that was just opened, and go on from the run's last checkpoint."""
    device.keep_memory()
    place = device.choose(recipe.device, recipe.precision)
    if loaded.tokenizer is None:
        raise TerakoyaError(recipe.model, "has no tokenizer")
    if isinstance(loaded.model, NGram):
        raise TerakoyaError(recipe.model, "is an n-gram model, which counts: it has no vectors for a head to read")
    if recipe.rows.context > loaded.spec.context:
        most = f"at most the model's {loaded.spec.context}"
        raise TerakoyaError("rows.context", given=recipe.rows.context, allowed=most)
    work = Headed(recipe.head, recipe.data, recipe.rows, loaded.tokenizer, recipe.seed)
    if not run.tokenizer.exists():
        loaded.tokenizer.save(run.tokenizer)
    model = loaded.model.to(place.name)
    head = attach(model, work.card, recipe.seed)
    if (recipe.probe or recipe.gradual) and head.out is None:
        problem = "an embedding has no layer of its own that could learn"
        raise TerakoyaError("probe" if recipe.probe else "gradual", problem)
    if getattr(recipe.head, "drop", 0.0) and not isinstance(head.out, Deep):
        raise TerakoyaError("head.drop", "goes with a layer between", hint="head.hidden=50 adds one")
    if isinstance(head.out, Deep) and recipe.rows.count < 2 * recipe.rows.micro:
        given, allowed = recipe.rows.count, f"{2 * recipe.rows.micro} or more: batch normalisation compares examples"
        raise TerakoyaError("rows.count", given=given, allowed=allowed)
    gains = by_layer(model, recipe.optim, recipe.decay)
    if recipe.probe:
        beside = set(head.parameters()) | (set(model.mix.parameters()) if isinstance(model, ElmoVectors) else set())
        for p in parameters(model).values():
            p.requires_grad_(p in beside)
    if not (run.folder / "environment.json").exists():
        run.write_json("environment.json", device.environment())
    fitter = Fitter(
        run=run, model=model, optimizer=Optimizer(model, recipe.optim, gains), place=place,
        objective=work.loss, recipe=recipe, work=work, loaded=loaded, tokenizer=loaded.tokenizer,
    )  # fmt: skip
    if not run.resolved.exists():
        run.write("resolved.toml", config.dump(replace(recipe, budget=Budget(steps=fitter.steps))))
    if (checkpoint := run.checkpoints(recipe.keep.count).latest()) is not None:
        fitter.resume(checkpoint)
    return fitter
