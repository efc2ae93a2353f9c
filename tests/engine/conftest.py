"""What the tests of the engine share: who computes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.engine_laws import BY


@pytest.fixture(scope="module", params=["native", "torch"])
def by(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the module's laws for both who may compute."""
    token = BY.set(request.param)
    yield request.param
    BY.reset(token)
