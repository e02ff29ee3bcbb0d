"""The parts of the story that can be wrong without a node: which chapters there are, when a store is renewed."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.control import CellView, StoreView
from cluster.audit.shelf import Shelf
from cluster.demo.report import Audit
from cluster.demo.story import _not_renewed, chapters, drain, look_at_the_disks

OLD, NEW = "a" * 32, "b" * 32


def view(voters: dict[str, int | None], learners: tuple[str, ...] = ()) -> CellView:
    return CellView(
        cell="a/1", node="n1", store="", log="", leader="n1", term=1, tip=9, commit=9, behind=0, nodes=("n1", "n2"),
        voters=tuple(StoreView(node="n2", store=store, behind=behind) for store, behind in voters.items()),
        learners=tuple(StoreView(node="n2", store=store) for store in learners),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "missing"),
    [
        (view({OLD: 0}), "is still a member"),
        (view({OLD: 0, NEW: 0}), "is still a member"),
        (view({}, (NEW,)), "n2 does not vote"),
        (view({NEW: None}), "n2 is None blocks behind"),
        (view({NEW: 1000}), "n2 is 1000 blocks behind"),
    ],
)
def test_a_wiped_node_is_not_renewed_before_its_new_store_votes(seen: CellView, missing: str) -> None:
    assert missing in _not_renewed(seen, "n2", OLD)


def test_a_wiped_node_is_renewed() -> None:
    assert _not_renewed(view({NEW: 1}), "n2", OLD) == ""


def test_a_cell_of_several_is_hurt_in_other_ways() -> None:
    one, three = ([chapter.title for chapter in chapters(nodes)] for nodes in (1, 3))
    assert set(one) - set(three) == {"A node is killed in the middle of it", "The lights go out"}
    assert set(three) - set(one) == {"A node loses its disk, and comes back", "In every region a node dies for good"}
    assert three == [chapter.title for chapter in chapters(5)]


@pytest.mark.parametrize(("killed", "found", "failures"), [(1, 1, 0), (1, 0, 1), (0, 0, 0)])
async def test_an_audit_that_found_nothing_where_a_node_was_killed_shows_nothing(
    killed: int, found: int, failures: int
) -> None:
    earlier = Audit("before", [Shelf("amber", "n1", home=Counter({"anna": 1})), Shelf("birch", "n1")])
    stage: Any = SimpleNamespace(regions=("amber", "birch"), audits=[earlier], failures=[], nodes_killed=killed)

    def auditor(when: str) -> Any:
        stage.audits.append(Audit(when, []))
        home = Counter({"anna": found} if found else {})
        return lambda region: stage.audits[-1].shelves.append(Shelf(region, "n1", home=home))

    stage.auditor = auditor
    await look_at_the_disks(stage)
    assert len(stage.failures) == failures and all("birch-n1" in text for text in stage.failures)


async def test_nobody_looks_at_the_disks_before_the_killed_nodes_have_ended(autojump_clock: Any) -> None:
    """A process that is killed holds its store until it is gone: up to a second on a busy machine."""
    happened: list[str] = []

    async def note(what: str) -> None:
        happened.append(what)

    nodes = [SimpleNamespace(region="amber", name=name) for name in ("n1", "n3")]
    federation = SimpleNamespace(running=lambda: nodes, ended=lambda: note("ended"))
    stage: Any = SimpleNamespace(
        federation=federation, failures=[], gadgets=[], renewed={("amber", "n2"): OLD},
        settled=lambda *_: note("settled"), go_offline=lambda _: note("offline"),
        kill=lambda region, name: happened.append(f"killed {region}-{name}"),
    )  # fmt: skip

    async def cell(region: str) -> CellView:
        return view({NEW: 0})

    stage.cell = cell
    await drain(stage)
    assert happened == ["settled", "offline", "killed amber-n1", "killed amber-n3", "ended"] and not stage.failures
