"""What came before, beside and after the families that are built here: plain data, one file per sort of node."""

from __future__ import annotations

from terakoya.zoo.history import bots, built, closed, decoders, japanese, planned, tunings
from terakoya.zoo.node import Built, Closed, Planned, Tuning

NODES: tuple[Built | Tuning | Closed | Planned, ...] = (
    *bots.NODES,
    *built.NODES,
    *planned.NODES,
    *decoders.NODES,
    *closed.NODES,
    *tunings.NODES,
    *japanese.NODES,
)
