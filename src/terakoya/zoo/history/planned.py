"""Structures that later lessons build: encoders, pictures."""

from __future__ import annotations

from terakoya.zoo.node import Note, Planned

NODES = (
    Planned(
        name="luke",
        title="LUKE",
        born="2020-10",
        parent="roberta",
        note=Note(
            "entities are tokens of their own, with queries of their own",
            "固有物を独立したトークンとし、専用のクエリで扱う",
        ),
        paper="Yamada 2020, arXiv:2010.01057",
        licence="Apache-2.0",
    ),
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
    Planned(
        name="flamingo",
        title="Flamingo",
        born="2022-04",
        parent="chinchilla",
        note=Note(
            "pictures enter a frozen language model through gated cross-attention",
            "固定した言語モデルに、門つきの交差注意で画像を入れる",
        ),
        paper="Alayrac 2022, arXiv:2204.14198",
    ),
    Planned(
        name="gato",
        title="Gato",
        born="2022-05",
        takes=("transformer",),
        note=Note(
            "words, pictures and a robot's motions in one stream of tokens",
            "言葉も画像もロボットの動きも一本のトークン列に",
        ),
        paper="Reed 2022, arXiv:2205.06175",
    ),
)
