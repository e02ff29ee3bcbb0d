"""A repair begins with a store, and makes none where there is none. What it makes of one: tests/e2e/test_journal.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.env import RealEnv
from cluster.repair import renew_log
from relay.errors import OperatorError
from relay.journal.portal import open_portal
from relay.journal.seal import StorageRing


@pytest.mark.parametrize("alone", ["", "n1"])
@pytest.mark.parametrize("empty", [True, False])
async def test_an_empty_file_is_no_store(tmp_path: Path, empty: bool, alone: str) -> None:
    """A log that began in it would say that nothing was lost."""
    file = tmp_path / "log.sqlite"
    if empty:
        file.touch(mode=0o600)
    async with open_portal() as portal:
        with pytest.raises(OperatorError, match="has no store"):
            await renew_log(
                tmp_path, RealEnv(portal), StorageRing([bytes(32)]), cell="amber/1", federation=bytes(32), alone=alone
            )
    assert list(tmp_path.iterdir()) == ([file] if empty else []) and (not empty or file.stat().st_size == 0)
