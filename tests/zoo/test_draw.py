"""The drawings of the lineage: every node is there, the columns stand straight, and nothing gets out of its quotes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from terakoya.errors import TerakoyaError
from terakoya.zoo import draw, lineage
from terakoya.zoo.card import card, cards
from terakoya.zoo.node import Closed, Note, Tuning
from terakoya.zoo.page import script_safe
from terakoya.zoo.words import KINDS, LANGS, WORDS

EVIL = "</script><img src=x onerror=alert(1)>\"'&<!--\u2028家🧑‍🏫"


@pytest.fixture
def evil(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A tree with a node whose every text is hostile; returns its name."""
    node = Tuning(
        name="evil",
        born="2030-01",
        parent="llama",
        note=Note(EVIL, EVIL),
        title=EVIL,
        data=Note(EVIL, EVIL),
        method=Note(EVIL, EVIL),
        recipe=EVIL,
        paper=EVIL,
        licence=EVIL,
    )
    table = lineage.nodes() | {"evil": node}
    with monkeypatch.context() as patch:
        patch.setattr(lineage, "nodes", lambda: table)
        cards.cache_clear()
        lineage._index.cache_clear()
        yield "evil"
    cards.cache_clear()
    lineage._index.cache_clear()


class Page(HTMLParser):
    """The elements, their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.preformatted = ""
        self.inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        if self.inside == "pre":
            self.preformatted += data


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("", 0),
        ("ab", 2),
        ("人工無能", 8),
        ("ｱｲ", 2),
        ("ﾊﾞ", 2),
        ("が", 2),
        ("か\u3099", 2),
        ("●─", 2),
        ("Ａ", 2),
        ("e\u0301", 1),
    ],
)
def test_width(text: str, cells: int) -> None:
    assert draw.width(text) == cells


@pytest.mark.parametrize("lang", LANGS)
def test_tree_has_every_node_once_in_straight_columns(lang: str) -> None:
    lines = draw.tree(lang).splitlines()
    body = lines[lines.index("") + 1 :]
    assert len(body) == len(lineage.nodes())
    assert len({draw.width(line[: line.index("Δ")]) for line in body if "Δ" in line}) == 1
    assert len({draw.width(line[: line.index("←")]) for line in body if "←" in line}) == 1
    assert all(draw.width(line) <= 132 for line in body)
    for line, c in zip(body, cards().values(), strict=True):
        assert line.startswith(f"{c.node.born:<7}  ")
        assert f"{KINDS[c.kind].mark} {c.title}" in line
    assert all(k.meaning.text(lang) in lines[1] for k in KINDS.values())


def test_rails_join() -> None:
    """Every stroke that goes up meets something that goes down."""
    lines = draw.tree().splitlines()
    body = [line[9:] for line in lines[lines.index("") + 1 :]]
    for above, line in pairwise(body):
        for i, c in enumerate(re.split(r"[●○◆◇▲■]", line)[0]):
            if c in "├└│":
                assert above[i] in "├│●○◆◇▲■", (above, line)


def test_tree_counts_changes() -> None:
    line = next(line for line in draw.tree().splitlines() if line.startswith("2019-02"))
    assert "● GPT-2" in line
    assert f"Δ {len(lineage.changes('gpt2'))}" in line


def test_mermaid_is_a_graph_of_all() -> None:
    text = draw.mermaid()
    ids = dict(re.findall(r'^  (n\d+)\["(.*?)<br/>', text, re.M))
    assert len(ids) == len(lineage.nodes())
    edges = re.findall(r"^  (n\d+) (-->|-\.->) (n\d+)$", text, re.M)
    assert {a for a, _, _ in edges} | {b for _, _, b in edges} <= set(ids)
    assert len(edges) == sum(bool(n.parent) + len(n.takes) for n in lineage.nodes().values())
    assert {f":::{kind}" for kind in KINDS} >= set(re.findall(r":::\w+", text))


@pytest.mark.parametrize("lang", LANGS)
@pytest.mark.parametrize("name", lineage.nodes())
def test_describe_tells_every_node(name: str, lang: str) -> None:
    node = lineage.nodes()[name]
    text = draw.describe(name, lang)
    assert text.startswith(f"{KINDS[card(name).kind].mark} {node.title or name}")
    assert node.born in text
    assert node.note.text(lang) in text
    assert node.paper in text
    for size, count in card(name).sizes:
        assert re.search(rf"^  {re.escape(size)} +{count:,}$", text, re.M)
    for change in card(name).changes:
        assert all(cell in text for cell in change)


def test_describe_finds_by_title_and_says_how_to_train() -> None:
    text = draw.describe("LLaMA 2")
    assert text == draw.describe("llama2")
    assert "terakoya train RECIPE model=llama2/nano" in text
    assert "LlamaForCausalLM" in text
    assert WORDS["recipe"].ja in draw.describe("swallow", "ja")


def test_what_is_not_built_says_so() -> None:
    planned = [c for c in cards().values() if c.kind == "planned"]
    for c in planned:
        assert "not built here yet" in draw.describe(c.node.name)
        assert "まだ作っていない" in draw.describe(c.node.name, "ja")
        assert not c.load
        assert not c.train


def test_unknown_words_are_refused() -> None:
    with pytest.raises(TerakoyaError, match="did you mean 'mistral'"):
        draw.describe("mistrall")
    for call in (draw.tree, draw.html, lambda lang: draw.describe("gpt", lang)):
        with pytest.raises(TerakoyaError, match="allowed: en, ja"):
            call("fr")


@pytest.mark.parametrize("lang", LANGS)
def test_page_holds_everything_and_fetches_nothing(lang: str) -> None:
    text = draw.html(lang)
    page = Page(text)
    assert ("html", {"lang": lang}) in page.found
    for tag, attributes in page.found:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    assert "default-src 'none'" in text
    code = page.scripts[1] + re.sub("<script.*?</script>", "", text, flags=re.S)
    assert set(re.findall(r"url\(|@import|https?:[^\s`\"]*|fetch\(|XMLHttp", code)) <= {
        "https://arxiv.org/abs/${arxiv[1]}",
        r"https:\/\/\S+$/.test(paper)",
    }
    data = json.loads(page.scripts[0])
    assert [n["name"] for n in data["nodes"]] == list(cards())
    for node in data["nodes"]:
        assert node["note"]["en"]
        assert node["note"]["ja"]
    assert data["lang"] == lang
    assert set(data["words"]["ja"]) == set(WORDS)
    assert page.preformatted.strip() == draw.tree(lang).strip()


def test_page_asks_only_for_words_it_has() -> None:
    script = Page(draw.html()).scripts[1]
    asked = set(re.findall(r'word\("(\w+)"\)', script)) | set(re.findall(r'tell\("(\w+)"', script))
    assert asked
    assert asked <= set(WORDS)
    assert "innerHTML" not in script
    assert "insertAdjacentHTML" not in script
    assert "document.write" not in script


def test_hostile_texts_stay_texts(evil: str) -> None:
    page = Page(draw.html("ja"))
    assert len(page.scripts) == 2
    assert "img" not in [tag for tag, _ in page.found]
    told = next(n for n in json.loads(page.scripts[0])["nodes"] if n["name"] == evil)
    assert told["title"] == told["note"]["ja"] == told["data"]["en"] == EVIL
    label = next(line for line in draw.mermaid().splitlines() if "2030" in line)
    assert not set("<>&'") & set(label.replace("<br/>", ""))
    assert label.count('"') == 2


def test_script_safe_comes_back() -> None:
    for value in (EVIL, {"a": [EVIL, None, 1.5]}, "\u2029</SCRIPT>"):
        text = script_safe(value)
        assert not set("<>&\u2028\u2029") & set(text)
        assert json.loads(text) == value


def test_a_ring_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    note = Note("a", "あ")
    ring = {n: Closed(name=n, born="2000", note=note, parent=p) for n, p in (("a", "b"), ("b", "a"))}
    monkeypatch.setattr(lineage, "nodes", lambda: ring)
    cards.cache_clear()
    try:
        with pytest.raises(AssertionError, match="ring"):
            cards()
    finally:
        monkeypatch.undo()
        cards.cache_clear()


def test_cards_are_plain_data() -> None:
    for c in cards().values():
        assert dataclasses.is_dataclass(c)
        assert c.trunk is None or c.node.name in cards()[c.trunk].branches
        assert (c.trunk is None) == (c.path == ())
