"""Every released size has exactly the parameters that were published, or that its published shape has."""

from __future__ import annotations

import pytest

from terakoya.model.build import count
from terakoya.zoo import lineage

ROWS = [f"{f.name}/{size}" for f in lineage.families().values() for size in f.sizes]


@pytest.mark.parametrize("row", ROWS)
def test_count_is_the_published_one(row: str) -> None:
    name, _, size = row.partition("/")
    assert count(lineage.sized(row)) == lineage.family(name).sizes[size].parameters


def test_there_are_enough_rows() -> None:
    assert len(ROWS) >= 60


def test_papers_without_weights_round_to_their_figures() -> None:
    """Systems nobody outside has seen: their shape gives the figure in the title of the paper."""
    for row, billions in {
        "gpt3/175b": 174.6,
        "megatron-lm/8.3b": 8.3,
        "turing-nlg/17b": 17.2,
        "mt-nlg/530b": 529.6,
        "gopher/280b": 279.7,
        "gopher/7.1b": 7.1,
        "chinchilla/70b": 70.1,
        "palm/540b": 540.4,
        "palm/62b": 62.5,
        "lamda/137b": 137.7,
        "glam/64b-64e": 1161.8,
    }.items():
        name, _, size = row.partition("/")
        assert round(lineage.family(name).sizes[size].parameters / 1e9, 1) == billions, row
