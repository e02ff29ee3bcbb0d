"""What the SDK's tests share: a mock clock, an honest federation in memory, and clients that speak to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from trio.testing import MockClock

from tests.relay.client.fake_cell import Federation, federation


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    """Every test takes it itself: pytest-trio looks for a clock among a test's own arguments."""
    return autojump_clock


@pytest.fixture
async def fed() -> AsyncIterator[Federation]:
    async with federation() as made:
        yield made
