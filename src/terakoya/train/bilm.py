"""ELMo's objective: predict the next word reading from the left, and the one before reading from the right."""

from __future__ import annotations

import torch

from terakoya.data.batch import Batch
from terakoya.model.elmo import Elmo
from terakoya.model.model import Model
from terakoya.train.objective import Outcome, context_of, cross_entropy


def bilm(model: Model, batch: Batch) -> Outcome:
    """Half of Σ w · -log p(target | past) plus half of Σ -log p(token | future) (Peters 2018, section 3.1).

    From the right a piece's tokens are guessed from those behind them; its last token has none and is not scored.
    """
    assert isinstance(model, Elmo)
    right = cross_entropy(model, model(batch.tokens, context_of(batch)), batch.targets, batch.weights)
    hidden = model.states(batch.tokens, context_of(batch), back=True)[-1]
    counts = torch.ones_like(batch.weights)
    counts[batch.cu[:-1].long()] = 0  # what stands before a piece's first token is not in the piece
    left = cross_entropy(model, hidden, batch.tokens.roll(1), counts)
    return Outcome((right + left) / 2, {"right": right.item(), "left": left.item()})
