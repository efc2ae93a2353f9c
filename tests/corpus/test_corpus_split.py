from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terakoya.corpus import Document, cut, held_out, python_stdlib, split
from terakoya.errors import TerakoyaError

MANY = [Document(f"文 {i}", f"a#{i}") for i in range(4000)]


@pytest.mark.parametrize("holdout", [0.01, 0.1, 0.5])
def test_split_is_a_partition_of_about_the_share(holdout: float) -> None:
    train, out = (list(side) for side in split(lambda: MANY, holdout, 0))
    assert len(train) + len(out) == len(MANY)
    assert {*train, *out} == {*MANY}
    assert abs(len(out) - holdout * len(MANY)) < 4 * (len(MANY) * holdout) ** 0.5
    assert out != list(split(lambda: MANY, holdout, 1)[1])


def test_sides_depend_on_the_text_and_not_the_place() -> None:
    for i in range(50):
        here, there = Document(f"t{i}", "a#1"), Document(f"t{i}", "b#9", "CC0-1.0")
        assert held_out(here, 0.3, 7) == held_out(there, 0.3, 7)


def test_a_larger_share_only_adds() -> None:
    small = {d.source for d in MANY if held_out(d, 0.1, 0)}
    assert small < {d.source for d in MANY if held_out(d, 0.2, 0)}


def test_groups_stay_together() -> None:
    parts = [Document(f"{i}", f"f{i % 40}#{i}", group=f"f{i % 40}") for i in range(400)]
    train, out = split(lambda: parts, 0.3, 0)
    assert not {d.group for d in train} & {d.group for d in out}


def test_bad_shares_and_empty_sides() -> None:
    for share in (0, 1, -0.1, 2, float("nan")):
        with pytest.raises(TerakoyaError, match="a share between 0 and 1"):
            split(lambda: MANY, share, 0)
    for side in split(lambda: [], 0.5, 0):
        with pytest.raises(TerakoyaError, match="none of 0 documents"):
            list(side)
    sides = split(lambda: MANY[:1], 0.5, 0)
    errors = 0
    for side in sides:
        try:
            list(side)
        except TerakoyaError as error:
            errors += "cut the tails" in str(error)
    assert errors == 1


@given(st.text(alphabet="aあ\n👩", min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_cut_joins_to_the_whole(text: str, share: float) -> None:
    document = Document(text, "a")
    head, tail = ("".join(d.text for d in cut([document], share, tail=side)) for side in (False, True))
    assert (head or tail) in text
    if head and tail:
        assert head + tail == text
        assert abs(len(tail) - share * len(text)) <= max(1, share * len(text) / 2 + 1)


def test_python_stdlib() -> None:
    documents = list(python_stdlib())
    code = [d for d in documents if d.language == "code"]
    docs = [d for d in documents if d.language == "en"]
    assert len(code) + len(docs) == len(documents)
    assert {d.licence for d in documents} == {"PSF-2.0"}
    assert len({d.source for d in code}) == len(code)
    assert len({d.text for d in docs}) == len(docs)
    size = sum(len(d.text.encode()) for d in documents)
    assert 8e6 < size < 30e6
    sources = [d.source for d in code]
    assert sources == sorted(sources)
    assert "python/json/decoder.py" in sources
    parts = {part for source in sources for part in source.split("/")}
    assert not parts & {"test", "tests", "site-packages", "__pycache__", "_bundled"}
    assert not [source for source in sources if "_sysconfigdata" in source]
    by_source = {d.source: d.text for d in code}
    assert all(d.group in by_source and d.source.startswith(d.group + "#") for d in docs)
    assert any(d.source == "python/json/__init__.py#module.dumps" for d in docs)
    # A piece of a held-out documentation string never stands in a source that is trained on.
    held = {d.group for d in documents if held_out(d, 0.1, 0)}
    assert all((d.group in held) == held_out(d, 0.1, 0) for d in documents)
