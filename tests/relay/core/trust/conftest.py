from __future__ import annotations

import pytest

from tests.relay.core.trust.keepers import Keepers


@pytest.fixture
def keepers() -> Keepers:
    made = Keepers()
    made.begin()
    return made
