"""A federation of two regions of one node each, with three people; nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.env import RealEnv
from cluster.local import Layout, make_federation
from cluster.local.people import create_user


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = make_federation(tmp_path / "f", ["amber", "birch"], RealEnv())
    for name, region in (("alice", "amber"), ("bob", "amber"), ("carol", "birch")):
        create_user(made.home, name, region, RealEnv().clock.wall_ms())
    return made
