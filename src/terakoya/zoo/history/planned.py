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
        name="transformer-xl",
        title="Transformer-XL",
        born="2019-01",
        parent="transformer",
        note=Note(
            "remembers the previous segment, with positions relative to each other",
            "前の区間を覚えておき、位置は互いの差で表す",
        ),
        paper="Dai 2019, arXiv:1901.02860",
        licence="Apache-2.0",
    ),
    Planned(
        name="xlnet",
        title="XLNet",
        born="2019-06",
        parent="transformer-xl",
        takes=("bert",),
        note=Note(
            "predicts in every order of the words, by two streams of attention",
            "単語をあらゆる順序で予測する。二本の流れの注意機構",
        ),
        paper="Yang 2019, arXiv:1906.08237",
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
    Planned(
        name="alphacode",
        title="AlphaCode",
        born="2022-02",
        parent="transformer",
        note=Note(
            "a shallow encoder and a deep decoder write many programs; tests choose",
            "浅い符号化と深い復号で多くのプログラムを書き、テストで選ぶ",
        ),
        paper="Li 2022, arXiv:2203.07814",
    ),
    Planned(
        name="llava",
        title="LLaVA",
        born="2023-04",
        parent="vicuna",
        note=Note(
            "a projected CLIP image is read by Vicuna as if it were words",
            "CLIP の画像を射影し、Vicuna が言葉のように読む",
        ),
        paper="Liu 2023, arXiv:2304.08485",
    ),
    Planned(
        name="llava1.5",
        title="LLaVA-1.5",
        born="2023-10",
        parent="llava",
        takes=("llama2",),
        note=Note(
            "two layers instead of one projection, larger pictures",
            "射影を二層にし、画像を大きくした",
        ),
        paper="Liu 2023, arXiv:2310.03744",
    ),
)
