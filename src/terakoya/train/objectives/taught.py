"""DistilBERT's three losses: the text's own, the teacher's softened distribution, and its hidden directions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome, context_of
from terakoya.train.objectives.mask import Mlm, named
from terakoya.train.objectives.task import Causal, Plan, Task


@dataclass(frozen=True)
class Distil(Plan):
    """Distillation while pretraining (Sanh 2019, §3), with the weights of its code.

    loss = `text` · MLM + `soft` · T² · KL(teacher ‖ student) over all tokens + `cosine` · (1 - cos of the last hidden
    vectors). `base = causal` is DistilGPT-2's form.
    """

    teacher: str  # a run, a folder, a name: a model of the same vocabulary
    temperature: float = 2.0
    text: float = 2.0
    soft: float = 5.0
    cosine: float = 1.0
    base: Mlm | Causal = field(default_factory=Mlm)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise TerakoyaError("objective.temperature", given=self.temperature, allowed="more than 0")
        if min(self.text, self.soft, self.cosine) < 0 or self.text + self.soft + self.cosine == 0:
            given = (self.text, self.soft, self.cosine)
            raise TerakoyaError("objective", "weights must be 0 or more, not all 0", given=given)

    @property
    def marks(self) -> tuple[str, ...]:
        return self.base.marks

    def room(self, context: int, joined: bool) -> int:
        return self.base.room(context, joined)

    def check(self, s: spec.Model) -> None:
        self.base.check(s)

    @property
    def leftward(self) -> bool:  # type: ignore[override]
        return self.base.leftward

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return Taught(self, tokenizer, s, seed)


class Taught(Task):
    """Distil at work; `teach` hands it the teacher."""

    def __init__(self, plan: Distil, tokenizer: Tokenizer, s: spec.Model, seed: int) -> None:
        super().__init__(tokenizer, seed)
        self.plan, self.base, self.spec = plan, plan.base.task(tokenizer, s, seed), s
        self.teacher: Model | None = None

    def teach(self, teacher: Model, tokenizer: Tokenizer | None) -> None:
        """Take a teacher that reads the same tokens."""
        if tokenizer is None or tokenizer.description() != self.signs.tokenizer.description():
            hint = "set tokenizer.path to the teacher's"
            raise TerakoyaError("objective.teacher", "has another vocabulary", given=self.plan.teacher, hint=hint)
        if self.plan.cosine and teacher.spec.out_dim != self.spec.out_dim:
            wide = f"{self.spec.out_dim} wide, or objective.cosine=0"
            raise TerakoyaError("objective.teacher", given=f"{teacher.spec.out_dim} wide", allowed=wide)
        self.teacher = teacher.requires_grad_(False).eval()

    def arrange(self, batch: Batch, step: int) -> Batch:
        return self.base.arrange(batch, step)

    def loss(self, model: Model, batch: Batch) -> Outcome:
        assert self.teacher is not None, "teach first"
        plan, count = self.plan, len(batch.tokens)
        with torch.no_grad():
            wise = self.teacher(batch.tokens, context_of(batch))
            soft = torch.log_softmax(self.teacher.head(wise).float() / plan.temperature, -1)
        hidden = model(batch.tokens, context_of(batch))
        text = named(model, hidden, batch)
        own = torch.log_softmax(model.head(hidden).float() / plan.temperature, -1)
        share = batch.weights.sum() / count  # all three are means: over what is named, and over all tokens
        kl = F.kl_div(own, soft, log_target=True, reduction="sum") * plan.temperature**2 * share
        far = (1 - F.cosine_similarity(hidden, wise, -1)).sum() * share if plan.cosine else kl.new_zeros(())
        seen = {"text_loss": text.loss.item(), "teacher_kl": kl.item(), "cosine_loss": far.item()}
        return Outcome(plan.text * text.loss + plan.soft * kl + plan.cosine * far, text.metrics | seen)
