"""One round of the crash harness, by its own command: a loaded cell loses its power. `make crash` does more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]


def test_a_cell_loses_nothing_when_the_power_goes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash", "--rounds", "1", "--kind", "power", "--rate", "200"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        timeout=2 * PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    totals = done.stdout.splitlines()[-1]
    assert totals.startswith("crash: 1 rounds") and "1 power cuts" in totals
    assert "lost 0, duplicated 0, reordered 0" in totals
    acknowledged = re.search(r"(\d+) acknowledged", totals)
    assert acknowledged and int(acknowledged[1]) > 100
