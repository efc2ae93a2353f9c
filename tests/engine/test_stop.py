"""Stop strings: the automaton against a search from every place."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from terakoya.engine.stop import Stop

LETTERS = st.text("abaあア\u200d👩👦", max_size=24)
STOPS = st.lists(st.text("abaあア\u200d👩👦", min_size=1, max_size=5), max_size=4).map(tuple)


def naive(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """What goes out, and what stopped it: the first end, then the first start."""
    for end in range(1, len(text) + 1):
        found = [s for s in stops if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def held(text: str, stops: tuple[str, ...]) -> int:
    """The longest end of `text` that begins a stop string."""
    return max((n for s in stops for n in range(len(s)) if text.endswith(s[:n])), default=0)


def pieces(text: str, cuts: list[int]) -> list[str]:
    at = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(at)]


@given(LETTERS, STOPS, st.lists(st.integers(0, 100), max_size=8))
@example("aaab", ("aab",), [1, 2])
@example("こんにちは。👩‍👦さようなら", ("👩‍👦",), [3, 7, 8])
@example("abcabd", ("bcx", "abd", "c"), [])
def test_any_split_stops_as_a_search_does(text: str, stops: tuple[str, ...], cuts: list[int]) -> None:
    stop, out, seen = Stop(stops), "", ""
    for piece in pieces(text, cuts):
        out += stop.push(piece)
        seen += piece
        if stop.found is None:
            assert len(seen) - len(out) == held(seen, stops)  # not a character more, not one less
    wanted, match = naive(text, stops)
    assert stop.found == match
    assert out + ("" if match else stop.finish()) == wanted


def test_every_split_in_two_of_a_japanese_text() -> None:
    text, stops = "質問に答えます。ｱｲｳ👨‍👩‍👧‍👦終わり次", ("👨‍👩‍👧‍👦終", "ｲｴ")
    for a in range(len(text)):
        for b in range(a, len(text)):
            stop = Stop(stops)
            assert "".join(map(stop.push, (text[:a], text[a:b], text[b:]))) == "質問に答えます。ｱｲｳ"
            assert stop.found == "👨‍👩‍👧‍👦終"


def test_nothing_passes_after_a_match() -> None:
    stop = Stop(("b",))
    assert [stop.push("ab"), stop.push("cd"), stop.finish()] == ["a", "", ""]


def test_no_lag_without_a_possible_match() -> None:
    stop = Stop(("###",))
    assert [stop.push(p) for p in ("one", " #", " two", "##", "#")] == ["one", " ", "# two", "", ""]
    assert stop.found == "###"


def test_many_and_long_strings_are_linear() -> None:
    stop = Stop(tuple("a" * n + "b" for n in range(1, 200)))
    assert stop.push("a" * 20_000) == "a" * (20_000 - 199)
    assert stop.push("b") == ""
    assert stop.found == "a" * 199 + "b"


@pytest.mark.parametrize("strings", [("",), ("a", "")])
def test_empty_strings_are_no_stop_strings(strings: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError):
        Stop(strings)
