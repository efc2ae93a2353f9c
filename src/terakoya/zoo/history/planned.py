"""Structures that later lessons build: encoders, pictures."""

from __future__ import annotations

from terakoya.zoo.node import Note, Planned

NODES = (
    Planned(
        name="roformer",
        title="RoFormer",
        born="2021-04",
        parent="bert",
        note=Note(
            "positions as rotations of queries and keys, so that scores depend on distance",
            "位置をクエリと鍵の回転で表し、得点が距離だけで決まる",
        ),
        paper="Su 2021, arXiv:2104.09864",
    ),
)
