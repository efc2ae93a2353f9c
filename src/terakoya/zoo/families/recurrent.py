"""Recurrent networks: what stood before the Transformer."""

from __future__ import annotations

from terakoya.model.spec import Block, Branch, Embed, Head, Model
from terakoya.model.spec_recurrent import GRU, LSTM, RNN
from terakoya.zoo.node import Family, Note, Size

FAMILIES = (
    Family(
        name="rnn",
        title="RNN",
        born="1986",
        note=Note(
            "a layer whose state at one step feeds the next: order, and memory, by one loop",
            "前の時刻の状態が次の時刻に入る層。一つの輪が順序と記憶を作る",
        ),
        paper="Elman 1990, Cognitive Science 14; Rumelhart 1986, Nature 323",
        proof="torch.nn.RNN",
        root=Model(
            vocab=10_000,
            dim=200,
            depth=1,
            context=1 << 16,
            blocks=(Block((Branch((RNN(),), skip=0.0),)),),
            norm=None,
            embed=Embed(),
            head=Head(tied=False, bias=True),
        ),
    ),
    Family(
        name="lstm",
        title="LSTM",
        born="1997",
        parent="rnn",
        note=Note(
            "gates decide what a cell keeps, forgets and shows, so that gradients survive long spans",
            "門が記憶の保持・忘却・出力を決め、勾配が長い時間を生きのびる",
        ),
        paper="Hochreiter and Schmidhuber 1997, Neural Computation 9(8)",
        proof="torch.nn.LSTM; parameter counts of Zaremba 2014 (20M, 66M) and Józefowicz 2016 (1.8B)",
        changes={"blocks": (Block((Branch((LSTM(),), skip=0.0),)),), "dim": 650, "depth": 2},
        sizes={
            "medium": Size(19_780_400),
            "large": Size(66_034_000, {"dim": 1500}),
            "big": Size(1_776_948_095, {"dim": 1024, "vocab": 793_471, "lstm.hidden": 8192}),
        },
    ),
    Family(
        name="gru",
        title="GRU",
        born="2014-06",
        parent="lstm",
        note=Note(
            "LSTM with two gates and no separate cell",
            "門を二つに減らし、別の記憶セルをなくした LSTM",
        ),
        paper="Cho 2014, arXiv:1406.1078",
        proof="torch.nn.GRU",
        changes={"blocks": (Block((Branch((GRU(),), skip=0.0),)),)},
    ),
)
