"""What ULMFiT trains with: NT-ASGD, penalties of AWD-LSTM, slanted triangles, rates by layer, gradual unfreezing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.awd import AwdLstm
from terakoya.model.model import Model
from terakoya.train.objective import Outcome, context_of, cross_entropy


def slanted(step: int, steps: int, cut: float = 0.1, ratio: float = 32.0) -> float:
    """Return the share of the peak rate: up during the first `cut` of the steps, then down to 1 / ratio.

    Howard and Ruder 2018 (arXiv:1801.06146), equation 3.
    """
    top = max(1, math.floor(steps * cut))
    p = step / top if step < top else 1 - (step - top) / (top * (1 / cut - 1))
    return (1 + max(p, 0.0) * (ratio - 1)) / ratio


def groups(model: AwdLstm) -> list[list[str]]:
    """Return the names of parameters by depth: words, each LSTM, and a child named "classifier" where there is one.

    The language model's own head is tied to the words; its bias goes with the last LSTM.
    """
    depth = len(model.layers)
    found: list[list[str]] = [[] for _ in range(depth + 2)]
    for name, _ in model.named_parameters():
        first, _, rest = name.partition(".")
        place = {"token": 0, "head": depth, "classifier": depth + 1}
        found[place[first] if first in place else 1 + int(rest.partition(".")[0])].append(name)
    return [group for group in found if group]


def discriminative(order: list[list[str]], decay: float = 2.6) -> dict[str, float]:
    """Return what each parameter's rate is multiplied with: 1 at the top, 1 / decay a group further down (§3.2)."""
    return {name: decay ** (i + 1 - len(order)) for i, group in enumerate(order) for name in group}


def unfreeze(model: nn.Module, order: list[list[str]], epoch: int) -> None:
    """Let the last `epoch` + 1 groups learn, the others rest (gradual unfreezing, §3.3)."""
    awake = {name for group in order[max(0, len(order) - 1 - epoch) :] for name in group}
    for name, p in model.named_parameters():
        p.requires_grad_(name in awake)
        if name not in awake:
            p.grad = None


def awd(model: Model, batch: Batch, alpha: float = 2.0, beta: float = 1.0) -> Outcome:
    """Return the language model's loss with AR and TAR (Merity 2017, section 4.4), both times Σ w.

    alpha times the mean square of the masked top states, beta times that of the unmasked ones' change along time.
    """
    assert isinstance(model, AwdLstm)
    plain, masked = model.states(batch.tokens, context_of(batch))
    loss = cross_entropy(model, masked, batch.targets, batch.weights)
    if not model.noise.on:
        return Outcome(loss)
    inside = torch.ones(len(plain), dtype=torch.bool, device=plain.device)
    inside[batch.cu[:-1].long()] = False
    change = (plain - plain.roll(1, 0))[inside]
    extra = alpha * masked.pow(2).mean() + (beta * change.pow(2).mean() if len(change) else 0.0)
    return Outcome(loss + extra * batch.weights.sum(), {"nats": loss.item()})


@dataclass(frozen=True)
class NtAsgdPlan:
    """Merity's values: rate 30 after clipping at 0.25, and five checks of patience."""

    lr: float = 30.0
    weight_decay: float = 1.2e-6
    patience: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or self.patience < 1:
            raise TerakoyaError(
                "ntasgd", given=f"lr={self.lr}, patience={self.patience}", allowed="lr > 0, patience >= 1"
            )


class NtAsgd:
    """SGD that begins to average once the held-out loss has stopped falling (Merity 2017, algorithm 1).

    `observe` takes the held-out losses; after the trigger `average` holds the mean of all weights since. The state is a
    flat table of tensors, as that of `train.optim.Optimizer`, and takes the same place in a step.
    """

    def __init__(self, model: nn.Module, plan: NtAsgdPlan = NtAsgdPlan()) -> None:
        self.plan = plan
        self.names = {p: name for name, p in model.named_parameters()}
        self.average = {p: p.detach().clone() for p in self.names}
        self.losses: list[float] = []
        self.count = 0  # steps averaged; 0: not triggered yet
        self.averaging = False

    def zero(self) -> None:
        """Forget the gradients."""
        for p in self.names:
            p.grad = None

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Move every parameter down its gradient, and its average after it."""
        self.count += self.averaging
        for p in self.names:
            if p.grad is not None:
                p.sub_(p.grad + self.plan.weight_decay * p, alpha=self.plan.lr * factor)
            if self.averaging:
                self.average[p].add_(p - self.average[p], alpha=1 / self.count)

    def observe(self, loss: float) -> bool:
        """Take a held-out loss; True where averaging begins with it: none of the last `patience` was the best."""
        old = self.losses[: max(0, len(self.losses) - self.plan.patience)]
        begins = not self.averaging and bool(old) and loss > min(old)
        self.losses.append(loss)
        self.averaging |= begins
        return begins

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages, to score or save the averages; a second call undoes it."""
        if self.count:
            for p, mean in self.average.items():
                p.data, self.average[p] = mean, p.data.clone()

    def state(self) -> dict[str, Tensor]:
        """Return every state tensor by name."""
        kept = {f"average/{self.names[p]}": mean for p, mean in self.average.items()}
        numbers = [float(self.averaging), float(self.count), *self.losses]
        return kept | {"numbers": torch.tensor(numbers, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        wanted = {f"average/{name}" for name in self.names.values()} | {"numbers"}
        if wanted != set(state):
            raise TerakoyaError("optimizer state", "is of another model", given=sorted(set(state) ^ wanted)[:4])
        for p, name in self.names.items():
            self.average[p] = state[f"average/{name}"].clone()
        averaging, count, *self.losses = state["numbers"].tolist()
        self.averaging, self.count = bool(averaging), int(count)
