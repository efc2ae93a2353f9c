"""The modules of the mixers in `spec_recurrent`, and what they are called in a block."""

from __future__ import annotations

from torch import nn

from terakoya.model import spec
from terakoya.model import spec_recurrent as kinds
from terakoya.model.recurrent import GRU, LSTM, RNN

RECURRENT: dict[type, str] = {kinds.RNN: "rnn", kinds.LSTM: "rnn", kinds.GRU: "rnn"}


def recurrent(s: kinds.Recurrent, model: spec.Model, layer: int) -> nn.Module:
    """Build the module of one recurrent mixer."""
    match s:
        case kinds.RNN():
            return RNN(s, model, layer)
        case kinds.LSTM():
            return LSTM(s, model, layer)
        case kinds.GRU():
            return GRU(s, model, layer)
