"""Structures that later lessons build: recurrent, encoders, encoder–decoders, state spaces, pictures."""

from __future__ import annotations

from terakoya.zoo.node import Note, Planned

NODES = (
    Planned(
        name="word2vec",
        title="Word2Vec",
        born="2013-01",
        note=Note(
            "word vectors learnt by guessing a word's neighbours; directions carry meaning",
            "周りの単語を当てて学ぶ単語ベクトル。方向が意味を持つ",
        ),
        paper="Mikolov 2013, arXiv:1301.3781",
    ),
    Planned(
        name="glove",
        title="GloVe",
        born="2014-01",
        parent="word2vec",
        note=Note(
            "vectors whose dot products give the logarithm of how often words meet",
            "内積が共起回数の対数になるように学ぶ単語ベクトル",
        ),
        paper="Pennington 2014, EMNLP",
    ),
    Planned(
        name="fasttext",
        title="fastText",
        born="2016-07",
        parent="word2vec",
        note=Note(
            "a word is the sum of its character n-grams, so unknown words have vectors too",
            "単語を文字 n-gram の和とするので、未知語にもベクトルがある",
        ),
        paper="Bojanowski 2016, arXiv:1607.04606",
    ),
    Planned(
        name="seq2seq",
        title="Seq2Seq",
        born="2014-09",
        parent="lstm",
        note=Note(
            "one LSTM reads a sentence into a vector, another writes the translation from it",
            "一つの LSTM が文をベクトルに読み込み、もう一つがそこから訳文を書く",
        ),
        paper="Sutskever 2014, arXiv:1409.3215",
    ),
    Planned(
        name="attention",
        title="Attention",
        born="2015-08",
        parent="seq2seq",
        note=Note(
            "at every step the decoder looks back over all the encoder's states, weighted",
            "復号のたびに、符号化側のすべての状態を重みつきで見直す",
        ),
        paper="Luong 2015, arXiv:1508.04025",
    ),
    Planned(
        name="elmo",
        title="ELMo",
        born="2018-02",
        parent="lstm",
        note=Note(
            "words in context: a language model in both directions gives the vectors",
            "文脈の中の単語ベクトル。両方向の言語モデルから作る",
        ),
        paper="Peters 2018, arXiv:1802.05365",
    ),
    Planned(
        name="ulmfit",
        title="ULMFiT",
        born="2018-01",
        parent="lstm",
        note=Note(
            "pretrain a language model, tune it on the task's text, then on the task",
            "言語モデルを事前学習し、課題の文章、そして課題へと調整する",
        ),
        paper="Howard and Ruder 2018, arXiv:1801.06146",
    ),
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
