"""Links in the documentation lead somewhere, and the metrics it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.registrar.metrics import RegistrarMetrics
from relay.observe.metrics import Metrics

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text("utf-8")):
        other = (page.parent / target).resolve() if target else page
        assert other.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(other), f"{page.name}: {target}#{anchor}"


def test_metrics_that_are_named_exist() -> None:
    exposed = (Metrics().render() + RegistrarMetrics().render()).decode()
    for name in re.findall(r"`(posthouse_\w+)`", (ROOT / "docs/OPERATIONS.md").read_text("utf-8")):
        assert re.search(rf"^# TYPE {name.removesuffix('_total')} ", exposed, re.MULTILINE), name


def test_tests_that_are_named_exist() -> None:
    """`file::name` in any page, and `file` followed by names (without "test_") in the table of TESTING."""
    defined = {
        (path.name, name)
        for path in ROOT.glob("tests/**/test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text("utf-8"))
    }
    for page in PAGES:
        for name, test in re.findall(r"`[\w/…]*?(test_\w+\.py)::(\w+)`", page.read_text("utf-8")):
            assert (name, test) in defined, f"{page.name}: {name}::{test}"
    table = (ROOT / "docs/TESTING.md").read_text("utf-8")
    for name, test in re.findall(r"`[\w/…]*?(test_\w+\.py)` ([a-z]+_\w+)", table):
        assert (name, f"test_{test}") in defined, f"TESTING.md: {name} {test}"
