"""The modules of the mixers in `spec_recurrent`, and what they are called in a block."""

from __future__ import annotations

from torch import nn

from terakoya.model import spec, spec_sparse
from terakoya.model import spec_recurrent as kinds
from terakoya.model.griffin import RGLRU
from terakoya.model.hyena import Hyena
from terakoya.model.mamba import Mamba, Mamba2
from terakoya.model.recurrent import GRU, LSTM, RNN
from terakoya.model.reformer import Lsh
from terakoya.model.retain import GatedDelta, LinearAttention, Retention
from terakoya.model.rwkv import Rwkv4, RwkvChannel
from terakoya.model.rwkv7 import Rwkv7, Rwkv7Channel
from terakoya.model.statespace import H3, S4

RECURRENT: dict[type, str] = {
    kinds.RNN: "rnn",
    kinds.LSTM: "rnn",
    kinds.GRU: "rnn",
    kinds.Mamba: "mamba",
    kinds.Mamba2: "mamba",
    kinds.Rwkv4: "time",
    kinds.RwkvChannel: "channel",
    kinds.RGLRU: "rglru",
    kinds.LinearAttention: "attn",
    kinds.Retention: "attn",
    kinds.GatedDelta: "delta",
    kinds.Rwkv7: "time",
    kinds.Rwkv7Channel: "channel",
    kinds.S4: "s4",
    kinds.S4D: "s4",
    kinds.H3: "h3",
    kinds.Hyena: "hyena",
    spec_sparse.Lsh: "attn",
}


def recurrent(s: kinds.Recurrent | spec_sparse.Lsh, model: spec.Model, layer: int) -> nn.Module:
    """Build the module of one recurrent mixer."""
    match s:
        case kinds.RNN():
            return RNN(s, model, layer)
        case kinds.LSTM():
            return LSTM(s, model, layer)
        case kinds.GRU():
            return GRU(s, model, layer)
        case kinds.Mamba():
            return Mamba(s, model, layer)
        case kinds.Mamba2():
            return Mamba2(s, model, layer)
        case kinds.Rwkv4():
            return Rwkv4(s, model, layer)
        case kinds.RwkvChannel():
            return RwkvChannel(s, model, layer)
        case kinds.RGLRU():
            return RGLRU(s, model, layer)
        case kinds.LinearAttention():
            return LinearAttention(s, model, layer)
        case kinds.Retention():
            return Retention(s, model, layer)
        case kinds.GatedDelta():
            return GatedDelta(s, model, layer)
        case kinds.Rwkv7():
            return Rwkv7(s, model, layer)
        case kinds.Rwkv7Channel():
            return Rwkv7Channel(s, model, layer)
        case kinds.S4() | kinds.S4D():
            return S4(s, model, layer)
        case kinds.H3():
            return H3(s, model, layer)
        case kinds.Hyena():
            return Hyena(s, model, layer)
        case spec_sparse.Lsh():
            return Lsh(s, model, layer)
