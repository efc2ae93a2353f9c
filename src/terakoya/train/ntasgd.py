"""NT-ASGD: plain gradient descent that averages its weights once the held-out loss stops falling (Merity 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from terakoya.errors import TerakoyaError


@dataclass(frozen=True)
class NtAsgd:
    """Merity's values: rate 30 after clipping at 0.25, and five looks of patience."""

    lr: float = 30.0
    weight_decay: float = 1.2e-6
    patience: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or self.patience < 1:
            raise TerakoyaError(
                "ntasgd", given=f"lr={self.lr}, patience={self.patience}", allowed="lr > 0, patience >= 1"
            )


class Averaged:
    """SGD that begins to average once the held-out loss has stopped falling (Merity 2017, algorithm 1).

    `observe` takes the held-out losses; after the trigger `average` holds the mean of all weights since. The state is a
    flat table of tensors, as that of `train.optim.Optimizer`, and takes the same place in a step.
    """

    def __init__(self, model: nn.Module, plan: NtAsgd = NtAsgd()) -> None:
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
        """Exchange weights and averages; a second call undoes it."""
        if self.count:
            for p, mean in self.average.items():
                p.data, self.average[p] = mean, p.data

    @contextmanager
    def on_average(self) -> Iterator[None]:
        """Put the averages in the place of the weights, to score or save them."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

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
