"""What two texts have in common, read off the means of both."""

from __future__ import annotations

import pytest
import torch

from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.tune.heads.head import vectors


def test_two_means_their_distance_and_their_product() -> None:
    x = torch.tensor([[1.0, 0], [3, 0], [0, 5], [4, 4], [1, 7]])
    ctx = Packed([3, 2], segments=torch.tensor([0, 0, 1, 0, 1]))
    found = vectors(Model.__new__(Model), x, ctx, "pair")
    root = 2**0.5  # each mean is brought to one length: a root mean square of 1
    norm = (1 + 49) ** 0.5 / root
    first = [root, 0, 0, root, root, root, 0, 0]
    second = [1, 1, 1 / norm, 7 / norm, 1 - 1 / norm, 7 / norm - 1, 1 / norm, 7 / norm]
    torch.testing.assert_close(found, torch.tensor([first, second]))


@pytest.mark.parametrize("segments", [None, torch.tensor([0, 1, 0, 0])])
def test_a_single_text_is_no_pair(segments: torch.Tensor | None) -> None:
    with pytest.raises(TerakoyaError, match="compares two texts"):
        vectors(Model.__new__(Model), torch.ones(4, 2), Packed([2, 2], segments=segments), "pair")
