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
from terakoya.tokenizer import Tokenizer
from terakoya.train import elmo
from terakoya.train.checkpoint import Checkpoint
from terakoya.train.kept import CONFIG, written
from terakoya.train.loop import Loop, bare, flops_per_token
from terakoya.train.optim import Optimizer
from terakoya.train.run import Run
from terakoya.train.step import Stepped
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
        return self.work.batch(step).split(self.recipe.rows.micro)

    def look(self, limit: int | None) -> dict[str, float]:
        return {f"heldout_{n}": v for n, v in self.work.look(self.model, self.place.name, limit).items()}

    def row(self, done: int, result: Stepped, micros: Sequence[Batch]) -> dict[str, Any]:
        return {"loss": result.loss, "tokens": sum(len(m.tokens) for m in micros)}

    def flops_per_token(self) -> float:
        if isinstance(self.model, ElmoVectors):
            return 0.0
        return flops_per_token(self.model.spec, self.recipe.rows.context) * (1 / 3 if self.recipe.probe else 1)

    def save(self, done: int) -> Path:
        """Write a checkpoint: a plain model folder, the head beside it, the optimiser."""
        model, family = bare(self.model), self.loaded.family
        head = head_of(self.model)
        weights = model.state_dict() if isinstance(model, ElmoVectors) else convert.tensors(model, family)
        tensors = {
            "model/model": {n: t.contiguous().cpu() for n, t in weights.items()},
            "optimizer": {n: t.cpu() for n, t in self.optimizer.state().items()},
        }
        extra = {"head/head.json": described(head.card)}
        if parts := {n: p.detach().cpu() for n, p in head.named_parameters()}:
            tensors["head/model"] = parts
        if isinstance(model, ElmoVectors):
            files = {CONFIG: written(elmo.said(model.elmo))}
        else:
            files = convert.config_files(Loaded(model, self.tokenizer, family, self.loaded.config))
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
        if isinstance(model := bare(self.model), ElmoVectors):
            elmo.restore(model, weights, str(checkpoint.path))
        else:
            filled = convert.restored(model.spec, self.loaded.family, weights, str(checkpoint.path))
            model.load_state_dict(filled.state_dict())
        if parts := dict(head_of(self.model).named_parameters()):
            kept = checkpoint.tensors("head/model")
            for name, p in parts.items():
                p.data.copy_(kept[name])
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
    if recipe.rows.context > loaded.spec.context:
        most = f"at most the model's {loaded.spec.context}"
        raise TerakoyaError("rows.context", given=recipe.rows.context, allowed=most)
    work = Headed(recipe.head, recipe.data, recipe.rows, loaded.tokenizer, recipe.seed)
    if not run.tokenizer.exists():
        loaded.tokenizer.save(run.tokenizer)
    model = loaded.model.to(place.name)
    head = attach(model, work.card, recipe.seed)
    if recipe.probe and head.out is None:
        raise TerakoyaError("probe", "an embedding has no layer of its own that could learn")
    if recipe.probe:
        beside = set(head.parameters()) | (set(model.mix.parameters()) if isinstance(model, ElmoVectors) else set())
        for p in parameters(model).values():
            p.requires_grad_(p in beside)
    if not (run.folder / "environment.json").exists():
        run.write_json("environment.json", device.environment())
    fitter = Fitter(
        run=run, model=model, optimizer=Optimizer(model, recipe.optim), place=place, objective=work.loss,
        recipe=recipe, work=work, loaded=loaded, tokenizer=loaded.tokenizer,
    )  # fmt: skip
    if not run.resolved.exists():
        run.write("resolved.toml", config.dump(replace(recipe, budget=Budget(steps=fitter.steps))))
    if (checkpoint := run.checkpoints(recipe.keep.count).latest()) is not None:
        fitter.resume(checkpoint)
    return fitter
