"""What the drawings of the lineage say around the facts, in English and Japanese."""

from __future__ import annotations

from dataclasses import dataclass

from terakoya.errors import TerakoyaError, nearest
from terakoya.zoo.node import Note

LANGS = ("en", "ja")


@dataclass(frozen=True)
class Kind:
    """A sort of node: its mark in the tree, its name, and what it means."""

    mark: str
    name: Note
    meaning: Note


KINDS = {
    "family": Kind("●", Note("family", "構造"), Note("a structure that runs here", "ここで動く構造")),
    "planned": Kind("○", Note("planned", "これから"), Note("a structure not built here yet", "まだ作っていない構造")),
    "tuning": Kind("◆", Note("tuning", "調整"), Note("the same structure, other lessons", "同じ構造、別の教材")),
    "closed": Kind("◇", Note("closed", "非公開"), Note("closed: history only", "非公開。歴史のみ")),
    "bot": Kind(
        "▲", Note("bot", "ボット"), Note("a chatbot without neural networks", "ニューラルネットを使わない会話ボット")
    ),
    "tool": Kind("■", Note("tool", "道具"), Note("a tool", "道具")),
}

WORDS = {
    "heading": Note("The lineage of language models", "言語モデルの系図"),
    "lead": Note(
        "Who came from whom, from 1966 to today. What runs here is written as the difference from its parent.",
        "1966 年から今日まで、だれがだれから生まれたか。ここで動くものは親との差分として書いてある。",
    ),
    "search": Note("Search names, notes, licences", "名前・説明・ライセンスを探す"),
    "keys": Note(
        "↑ ↓ move · ← parent · → first child · Enter opens · / searches · Esc closes",
        "↑ ↓ 移動 · ← 親へ · → 最初の子へ · Enter 開く · / 検索 · Esc 閉じる",
    ),
    "pick": Note("Choose a name to see what it changed.", "名前を選ぶと、何が変わったかがわかります。"),
    "none": Note("Nothing found.", "見つかりません。"),
    "close": Note("Close", "閉じる"),
    "theme": Note("Light or dark", "明るさ"),
    "path": Note("Descent", "系統"),
    "parent": Note("Parent", "親"),
    "takes": Note("Influences", "影響を受けた"),
    "children": Note("Children", "子"),
    "inspired": Note("Influenced", "影響を与えた"),
    "changed": Note("What changed from", "変わったところ。もとは"),
    "what": Note("what", "項目"),
    "before": Note("before", "前"),
    "after": Note("after", "後"),
    "sizes": Note("Sizes", "大きさ"),
    "parameters": Note("parameters", "パラメータ"),
    "data": Note("Data", "データ"),
    "method": Note("Method", "方法"),
    "recipe": Note("Recipe here", "ここでのレシピ"),
    "paper": Note("Paper", "論文"),
    "licence": Note("Licence", "ライセンス"),
    "proof": Note("Proof", "証明"),
    "load": Note("Load", "読み込む"),
    "train": Note("Train", "訓練する"),
    "legend": Note("Marks", "印"),
    "delta": Note("Δ: fields changed from the parent", "Δ: 親から変えた項目の数"),
    "dotted": Note("┄ influence, not written as a difference", "┄ 影響。差分では書かない"),
}


def checked(lang: str) -> str:
    """Return `lang` if the drawings speak it."""
    if lang not in LANGS:
        raise TerakoyaError("lang", given=lang, allowed=LANGS, hint=nearest(lang, LANGS))
    return lang
