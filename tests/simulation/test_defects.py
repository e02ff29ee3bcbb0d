"""The hunt for planted defects works, and the documentation names what there is. All of them: `make defects`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.simulation.defects import DEFECTS
from tests.simulation.hunt import hunt

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| (?:R?\d+|moves|channels) \|.*$", (ROOT / "docs/TESTING.md").read_text("utf-8"), re.MULTILINE)
QUICK = ("admits repeats", "catch up skips", "fold reads the clock", "delivers what has expired")


@pytest.mark.parametrize("name", QUICK)
def test_a_defect_is_found(name: str) -> None:
    place = next(place for place, defect in enumerate(DEFECTS) if defect.name == name)
    found = hunt(place, seeds=5)
    assert found.seed, found.violation


def test_the_table_names_every_rule_and_every_defect() -> None:
    rules = [*map(str, range(1, 20)), "moves", "channels", *(f"R{n}" for n in range(1, 8))]
    assert [row.split(" | ")[0].strip("| ") for row in ROWS] == rules
    named = {name.strip() for row in ROWS for name in row.split(" | ")[3].strip("| ").split("core:")[0].split(";")}
    assert named - {"–", ""} == {defect.name for defect in DEFECTS}


def test_the_tests_that_the_table_names_exist() -> None:
    for row in ROWS:
        tests = row.split(" | ")[2]
        text = "".join(page.read_text("utf-8") for file in set(re.findall(r"test_\w+\.py", tests))
                       for page in ROOT.glob(f"tests/**/{file}"))  # fmt: skip
        for name in re.findall(r"(?<=[ ,])([a-z]\w*_\w+_\w+)(?=[,;]|$)", tests):
            assert f"def test_{name}(" in text, name
