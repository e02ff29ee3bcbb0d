"""What a running node goes by once it has verified another root document, and who is told."""

from __future__ import annotations

from msgspec import structs

from cluster.following import Following, changed, followed
from relay.core.trust import Policy, Root, RootCell, RootNode, RootRegion
from tests.roots import verified_root

UNTIL = 2_000_000_000_000


def region(name: str, *nodes: str, link: str = "a:1", **more: object) -> RootRegion:
    cell = RootCell(f"{name}/1", tuple(RootNode(node, link, ()) for node in nodes or ("n1",)))
    return structs.replace(RootRegion(name, b"", b"r" * 32, (cell,)), **more)


def root(*regions: RootRegion, lapsed: tuple[str, ...] = ()) -> Root:
    made = verified_root(regions, UNTIL)
    return structs.replace(made, payload=structs.replace(made.payload, lapsed=lapsed))


NORDEN, SAUDA = region("norden", "n1", "n2"), region("sauda")
BEFORE = root(NORDEN, SAUDA)


def test_what_came_and_what_changed_counts() -> None:
    anew = region("sauda", "n1", "n2", link="b:2", registrar_key=b"s" * 32, policy=Policy(send_to=()))
    own = structs.replace(region("norden", "n1", "n2", link="b:2", authority=b"x"), log_key="log")
    new = root(own, anew, region("vika"))
    assert followed(BEFORE, new, "norden/1") == (new, "") and changed(BEFORE, new) == ["norden", "sauda", "vika"]


def test_who_is_in_the_own_cell_waits_and_nothing_else_of_it() -> None:
    for names in (("n1",), ("n1", "n2", "n3"), ("n1", "n4")):
        own = region("norden", *names, log_key="log")
        own = structs.replace(own, cells=(*own.cells, RootCell("norden/2", ())))
        taken, waits = followed(BEFORE, root(own, region("vika")), "norden/1")
        assert waits == "it lists other nodes of norden/1"
        assert taken.cell("norden/1") == NORDEN.cells[0] and taken.region("norden").log_key == "log"
        assert set(taken.cells()) == {"norden/1", "norden/2", "vika/1"}
        again, waits = followed(taken, root(NORDEN), "norden/1")
        assert not waits and again.cells() == ["norden/1"], "it is over when the document says what it said"
    taken, waits = followed(BEFORE, root(structs.replace(NORDEN, cells=())), "norden/1")
    assert waits and taken.cells() == ["norden/1"]


def test_who_went_is_gone_and_who_let_the_statement_run_out_is_waited_for() -> None:
    assert followed(BEFORE, root(NORDEN), "norden/1")[0].cells() == ["norden/1"]
    taken, waits = followed(BEFORE, root(NORDEN, lapsed=("sauda",)), "norden/1")
    assert not waits and taken.region("sauda") == SAUDA
    assert followed(taken, root(NORDEN), "norden/1")[0].cells() == ["norden/1"], "removed after that"


def test_the_own_region_is_never_lost() -> None:
    for new in (root(SAUDA), root(SAUDA, lapsed=("norden",))):
        taken, waits = followed(BEFORE, new, "norden/1")
        assert waits == "it does not name norden, the own region" and taken.region("norden") == NORDEN


def test_who_comes_later_is_told_what_counts_and_a_life_that_is_over_nothing() -> None:
    following, early, late, always = Following(BEFORE, "norden/1"), list[Root](), list[Root](), list[Root]()
    following.add([always.append], always=True)
    following.add([early.append])
    new = root(NORDEN)
    assert following.take(new) == ["sauda"] and following.begin() == new
    following.add([late.append])
    newest = root(NORDEN, region("vika"))
    following.take(newest)
    assert (always, early, late) == ([BEFORE, new, newest], [BEFORE, new], [new, newest])
