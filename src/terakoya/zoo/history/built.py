"""Structures of their own sort, built here beside the stack of blocks that `model/spec.py` describes."""

from __future__ import annotations

from terakoya.zoo.node import Built, Note

NODES = (
    Built(
        name="ngram",
        title="n-gram",
        born="1995",
        note=Note(
            "count what followed the last words; smooth by how many neighbours a word has known",
            "直前の語の後に何が来たかを数え、語の隣人の数で平滑化する",
        ),
        paper="Kneser and Ney 1995, ICASSP; Chen and Goodman 1998, TR-10-98",
        train="terakoya train ngram",
        proof=Note(
            "a dictionary that follows the formulas, every probability",
            "式どおりに書いた辞書と、すべての確率が一致",
        ),
    ),
    Built(
        name="word2vec",
        title="Word2Vec",
        born="2013-01",
        note=Note(
            "word vectors learnt by guessing a word's neighbours; directions carry meaning",
            "周りの単語を当てて学ぶ単語ベクトル。方向が意味を持つ",
        ),
        paper="Mikolov 2013, arXiv:1301.3781",
        train="terakoya vectors train CORPUS FOLDER --method skipgram",
        proof=Note(
            "words.c against a definition in numpy; gensim at equal epochs (bench/vectors.py)",
            "words.c と numpy の定義の一致、同じエポック数の gensim（bench/vectors.py）",
        ),
    ),
    Built(
        name="glove",
        title="GloVe",
        born="2014-01",
        parent="word2vec",
        note=Note(
            "vectors whose dot products give the logarithm of how often words meet",
            "内積が共起回数の対数になるように学ぶ単語ベクトル",
        ),
        paper="Pennington 2014, EMNLP",
        train="terakoya vectors train CORPUS FOLDER --method glove",
        proof=Note(
            "words.c against a definition in numpy; fits the logarithms",
            "words.c と numpy の定義の一致、対数への当てはめ",
        ),
    ),
    Built(
        name="fasttext",
        title="fastText",
        born="2016-07",
        parent="word2vec",
        note=Note(
            "a word is the sum of its character n-grams, so unknown words have vectors too",
            "単語を文字 n-gram の和とするので、未知語にもベクトルがある",
        ),
        paper="Bojanowski 2016, arXiv:1607.04606",
        train="terakoya vectors train CORPUS FOLDER --subwords",
        proof=Note(
            "hashes and n-grams of gensim; words.c against numpy",
            "ハッシュと n-gram は gensim と、計算は numpy の定義と一致",
        ),
    ),
    Built(
        name="seq2seq",
        title="Seq2Seq",
        born="2014-09",
        parent="lstm",
        note=Note(
            "one LSTM reads a sentence into a vector, another writes the translation from it",
            "一つの LSTM が文をベクトルに読み込み、もう一つがそこから訳文を書く",
        ),
        paper="Sutskever 2014, arXiv:1409.3215",
        train="terakoya train recipes/translate.toml pairs.kind=sutskever",
        proof=Note(
            "the paper's equations number by number; 64,000,000 recurrent weights",
            "論文の式との数値一致、回帰の重み 64,000,000 個",
        ),
    ),
    Built(
        name="attention",
        title="Attention",
        born="2015-08",
        parent="seq2seq",
        note=Note(
            "at every step the decoder looks back over all the encoder's states, weighted",
            "復号のたびに、符号化側のすべての状態を重みつきで見直す",
        ),
        paper="Luong 2015, arXiv:1508.04025",
        train="terakoya train recipes/translate.toml",
        proof=Note(
            "Bahdanau's and Luong's equations number by number",
            "Bahdanau と Luong の式との数値一致",
        ),
    ),
    Built(
        name="elmo",
        title="ELMo",
        born="2018-02",
        parent="lstm",
        note=Note(
            "words in context: a language model in both directions gives the vectors",
            "文脈の中の単語ベクトル。両方向の言語モデルから作る",
        ),
        paper="Peters 2018, arXiv:1802.05365",
        train="terakoya train recipes/elmo-ja-nano.toml",
        proof=Note(
            "the released model's equations number by number; 93.6 M parameters",
            "公開モデルの式との数値一致、9360 万パラメータ",
        ),
    ),
    Built(
        name="ulmfit",
        title="ULMFiT",
        born="2018-01",
        parent="lstm",
        note=Note(
            "pretrain a language model, tune it on the task's text, then on the task",
            "言語モデルを事前学習し、課題の文章、そして課題へと調整する",
        ),
        paper="Howard and Ruder 2018, arXiv:1801.06146",
        train="terakoya train recipes/awd-ja-nano.toml",
        proof=Note(
            "torch.nn.LSTM with the same weights dropped; the papers' formulas",
            "同じ重みを落とした torch.nn.LSTM、論文の式",
        ),
    ),
)
