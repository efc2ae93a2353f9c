from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.data import permute
from terakoya.data.order import epoch_seed


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 255, 256, 257, 1000, 12345])
@pytest.mark.parametrize("seed", [0, 1, 2**63, -5])
def test_permute_is_a_bijection(n: int, seed: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, seed)), np.arange(n))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2**62), st.integers(0, 2**64), st.data())
def test_permute_has_no_state(n: int, seed: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)), dtype=np.int64)
    out = permute(index, n, seed)
    assert ((out >= 0) & (out < n)).all()
    assert out.tolist() == [int(permute(i, n, seed)) for i in index]


def test_permute_order_is_pinned() -> None:
    # The order is part of every run's identity: a change here changes the data order of old runs.
    assert permute(np.arange(10), 10, 0).tolist() == [4, 8, 2, 1, 6, 5, 9, 7, 0, 3]
    assert permute(np.arange(3), 10**12, 7).tolist() == [160885122380, 984426683791, 810721400085]


def test_permute_looks_random() -> None:
    n = 200_000
    order = permute(np.arange(n), n, 3)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.01
    # Small orders too: each value stands at each place about equally often over seeds.
    hits = np.zeros((5, 5))
    for seed in range(2000):
        hits[np.arange(5), permute(np.arange(5), 5, epoch_seed(seed, 0))] += 1
    assert abs(hits / 400 - 1).max() < 0.25


def test_neighbouring_seeds_do_not_meet() -> None:
    assert len({epoch_seed(seed, epoch, part) for seed in range(9) for epoch in range(9) for part in range(3)}) == 243


def test_permute_refuses_what_is_outside() -> None:
    for bad in ([10], [-1]):
        with pytest.raises(IndexError):
            permute(np.array(bad), 10, 0)
