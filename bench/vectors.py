"""Word vectors beside gensim's: speed of one core, and quality at equal epochs and settings.

    python bench/vectors.py CORPUS --split words|ja [--limit BYTES]      (needs gensim; ja needs the extra ja)

Quality: how many analogies of a list come out right (the right word is the nearest), the mean reciprocal rank of one
word of a related pair among the neighbours of the other, and how many of the ten neighbours of 300 frequent words two
trainings share: ours with gensim's, and gensim's with gensim's under another seed, which is the noise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import gensim.models
import numpy as np

from terakoya.train.prepare import documents
from terakoya.train.recipe import Corpus
from terakoya.vectors.subword import Subwords
from terakoya.vectors.table import Vectors
from terakoya.vectors.train import LAST_RATE, Settings, learn
from terakoya.vectors.vocabulary import Text, Vocabulary, read
from terakoya.vectors.words import sentences

PAIRS = {
    "words": "mother father|brother sister|day night|king queen|eyes face|hand arm|morning evening|door window|"
    "sea ship|horse horses|black white|boy girl|husband wife|winter summer|gold silver|north south|bread butter|"
    "love hate|war peace|rich poor|young old|sword spear|uncle aunt|east west|tea coffee|church priest|"
    "happy glad|large small|river stream|night dark",
    "ja": "父 母|兄 弟|春 秋|東 西|男 女|朝 晩|右 左|山 川|犬 猫|雨 雪|赤い 青い|目 耳|手 足|昨日 今日|夫 妻|"
    "僕 君|北 南|夏 冬|米 麦|刀 槍|先生 生徒|船 港|手紙 葉書|悲しい 寂しい|海 波|馬 牛|酒 茶|昼 夜|"
    "大きな 小さな|京都 大阪",
}
GROUPS = {  # every two lines of a group make an analogy
    "words": (
        "man woman|boy girl|king queen|husband wife|father mother|brother sister|uncle aunt|"
        "gentleman lady|son daughter|he she",
        "day days|hour hours|eye eyes|hand hands|friend friends|horse horses|book books|"
        "house houses|tree trees|ship ships",
        "go went|come came|see saw|say said|know knew|give gave|take took|find found|tell told|stand stood",
        "good better|great greater|large larger|strong stronger|young younger|old older|high higher|small smaller",
    ),
    "ja": (
        "父 母|兄 姉|夫 妻|男 女|息子 娘|祖父 祖母|弟 妹",
        "春 夏|秋 冬|朝 夕|昼 夜|東 西|北 南|右 左",
        "行く 行っ|見る 見|言う 言っ|思う 思っ|書く 書い|聞く 聞い|立つ 立っ|持つ 持っ",
        "大きい 大きな|小さい 小さな|可笑しい 可笑しな",
    ),
}


def pairs(text: str, known: set[str]) -> list[tuple[str, str]]:
    found = [tuple(pair.split()) for pair in text.split("|")]
    return [(a, b) for a, b in found if a in known and b in known]


def quality(v: Vectors, split: str) -> tuple[float, int, float, int]:
    """Return (share of analogies right, their number, mean reciprocal rank of related pairs, their number)."""
    known, right, total = set(v.words[:20_000]), 0, 0
    head = Vectors(v.words[:20_000], v.table[:20_000])
    for group in GROUPS[split]:
        have = pairs(group, known)
        for a, b in have:
            for c, d in have:
                if a != c:
                    total += 1
                    right += head.analogy(a, b, c, 1)[0].word == d
    ranks = []
    for a, b in pairs(PAIRS[split], known):
        for x, y in ((a, b), (b, a)):
            names = [f.word for f in head.neighbours(x, 100)]
            ranks.append(1 / (1 + names.index(y)) if y in names else 0.0)
    return right / max(total, 1), total, float(np.mean(ranks)), len(ranks) // 2


def shared(a: Vectors, b: Vectors) -> float:
    """Return the share of ten neighbours in common, over 300 frequent words."""
    words = [w for w in a.words[100:400] if w in b.index]
    near = lambda v, w: {f.word for f in v.neighbours(w, 10)}
    return float(np.mean([len(near(a, w) & near(b, w)) / 10 for w in words]))


def theirs(
    said: list[list[str]], s: Settings, least: int, subwords: Subwords | None, seed: int
) -> tuple[Vectors, float]:
    window, epochs, rate = s.usual()
    how = {
        "vector_size": s.dim, "window": window, "min_count": least, "sg": int(s.method == "skipgram"), "workers": 1,
        "hs": int(not s.negative), "negative": s.negative, "sample": s.sample, "alpha": rate, "seed": seed,
        "min_alpha": rate * LAST_RATE, "cbow_mean": 1,
    }  # fmt: skip
    if subwords:
        how |= {"min_n": subwords.shortest, "max_n": subwords.longest, "bucket": subwords.buckets}
    model = (gensim.models.FastText if subwords else gensim.models.Word2Vec)(**how)
    model.build_vocab(said)
    began = time.process_time()
    model.train(said, total_examples=model.corpus_count, epochs=epochs)
    spent = time.process_time() - began
    return Vectors(tuple(model.wv.index_to_key), np.ascontiguousarray(model.wv.vectors)), spent


def ours(make: Callable[[], Vectors]) -> tuple[Vectors, float]:
    began = time.process_time()
    made = make()
    return made, time.process_time() - began


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("corpus")
    p.add_argument("--split", default="words", choices=list(PAIRS))
    p.add_argument("--limit", type=int, default=8_000_000, help="bytes of text")
    p.add_argument("--only", nargs="+", default=[])
    args = p.parse_args()
    said = list(sentences((d.text for d in documents(Corpus(args.corpus, limit=args.limit))), args.split))
    vocabulary, text = read(said, 5)
    words = len(text.ids)
    print(f"{args.split}: {words:,} words, {len(vocabulary.words):,} different ones seen 5 times or more")
    cases: dict[str, tuple[Settings, Subwords | None]] = {
        "skipgram": (Settings("skipgram"), None),
        "skipgram hs": (Settings("skipgram", negative=0), None),
        "cbow": (Settings("cbow"), None),
        "fasttext": (Settings("skipgram"), Subwords(3, 6) if args.split == "words" else Subwords(1, 3)),
        "glove": (Settings("glove"), None),
    }
    for name, (settings, subwords) in cases.items():
        if args.only and name not in args.only:
            continue
        report(name, settings, subwords, said, vocabulary, text, args.split)


def report(
    name: str,
    s: Settings,
    subwords: Subwords | None,
    said: list[list[str]],
    vocabulary: Vocabulary,
    text: Text,
    split: str,
) -> None:
    """Train by both, twice, and print what came of it."""
    words = len(text.ids) * s.usual()[1]

    def told(who: str, v: Vectors, seconds: float) -> None:
        right, total, rank, count = quality(v, split)
        found = f"analogies {right:.3f} of {total}  related {rank:.3f} of {count}"
        print(f"{name:12s} {who:7s} {words / seconds:10,.0f} words/s  {found}", flush=True)

    mine, spent = ours(lambda: learn(s, vocabulary, text, subwords))
    told("ours", mine, spent)
    if s.method == "glove":
        return
    other, seconds = theirs(said, s, 5, subwords, 1)
    told("gensim", other, seconds)
    print(f"{name:12s} ratio   {seconds / spent:10.2f} times as fast", flush=True)
    again, _ = ours(lambda: learn(replace(s, seed=1), vocabulary, text, subwords))
    noise, _ = theirs(said, s, 5, subwords, 2)
    print(
        f"{name:12s} neighbours in common: ours and gensim {shared(mine, other):.3f}, "
        f"gensim twice {shared(other, noise):.3f}, ours twice {shared(mine, again):.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
