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
