"""What came before, beside and after the families that are built here: plain data, one file per sort of node."""

from __future__ import annotations

from terakoya.zoo.history import bots, closed, decoders, japanese, planned, tunings
from terakoya.zoo.node import Closed, Planned, Tuning

NODES: tuple[Tuning | Closed | Planned, ...] = (
    *bots.NODES,
    *planned.NODES,
    *decoders.NODES,
    *closed.NODES,
    *tunings.NODES,
    *japanese.NODES,
)
