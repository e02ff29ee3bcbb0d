"""Links by another root document, while they are open: whom it lets in now, and where they are."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from msgspec import structs

from cluster.core.linkwire import LookUp, Records
from cluster.links.pace import FAR as FAR_PACE
from cluster.pki import make_authority
from relay.core.trust import Root, RootNode
from relay.core.wire import Code
from relay.errors import PeerError, Refused
from tests.cluster.links.conftest import FAR
from tests.roots import verified_root

LOOKUP = LookUp(bytes(32), 0)
FOUND = Records(Code.STORED, (bytes(32),))


def without(root: Root, *names: str) -> Root:
    return verified_root([one for one in root.payload.regions if one.name not in names], FAR)


def with_node(root: Root, region: str, *nodes: RootNode) -> Root:
    regions = [
        structs.replace(one, cells=(structs.replace(one.cells[0], nodes=nodes),)) if one.name == region else one
        for one in root.payload.regions
    ]
    return verified_root(regions, FAR)


async def gone(node: Any, cell: str) -> None:
    with trio.fail_after(10):
        while True:
            if not node.links.connected(cell):
                return
            await trio.sleep(0.01)


async def test_a_region_that_comes_is_asked_and_asks(fed: Any) -> None:
    norden, sueden = fed.nodes["norden"], fed.nodes["sueden"]
    for node in (norden, sueden):
        other = "sueden" if node is norden else "norden"
        node.links.follow(without(fed.root, other))
    with trio.fail_after(20):
        async with fed.running("norden", "sueden"):
            with pytest.raises(Refused) as refused:
                await norden.links.request("sueden/1", LOOKUP)
            assert refused.value.code == Code.UNKNOWN_REGION
            norden.links.follow(fed.root)
            with pytest.raises(Refused):
                await norden.links.request("sueden/1", LOOKUP, 0.5)  # it does not know norden yet
            assert sueden.links.refused and not sueden.asked
            sueden.links.follow(fed.root)
            while True:
                try:
                    assert await norden.links.request("sueden/1", LOOKUP) == FOUND
                    break
                except Refused:
                    await trio.sleep(0.1)
            assert await sueden.links.request("norden/1", LOOKUP) == FOUND


@pytest.mark.parametrize("asked", [True, False])
async def test_an_open_link_to_who_went_ends_on_both_sides(fed: Any, asked: bool) -> None:
    """Whoever takes the document first: the dialer or the listener. A node that is not listed any more, too."""
    norden, sueden = fed.nodes["norden"], fed.nodes["sueden"]
    other = RootNode("n2", f"127.0.0.1:{fed.ports['westen']}", ())
    with trio.fail_after(20):
        async with fed.running("norden", "sueden"):
            for went in (without(fed.root, "sueden" if asked else "norden"), None):
                assert await norden.links.request("sueden/1", LOOKUP) == FOUND
                one = norden if asked else sueden
                one.links.follow(went or with_node(fed.root, "sueden" if asked else "norden", other))
                await gone(norden, "sueden/1")
                one.links.follow(fed.root)


async def test_a_link_to_who_stays_stays(fed: Any) -> None:
    norden, sueden = fed.nodes["norden"], fed.nodes["sueden"]
    with trio.fail_after(20):
        async with fed.running("norden", "sueden"):
            await norden.links.request("sueden/1", LOOKUP)
            live = norden.links._cells["sueden/1"]._live
            for root in (without(fed.root, "westen"), fed.root):
                norden.links.follow(root), sueden.links.follow(root)
            await trio.sleep(0.2)
            await norden.links.request("sueden/1", LOOKUP)
            assert norden.links._cells["sueden/1"]._live is live


async def test_another_authority_lets_nobody_of_the_old_one_go_on(fed: Any) -> None:
    norden, sueden = fed.nodes["norden"], fed.nodes["sueden"]
    authority = make_authority("sueden")[0]
    regions = [
        structs.replace(one, authority=authority) if one.name == "sueden" else one for one in fed.root.payload.regions
    ]
    with trio.fail_after(20):
        async with fed.running("norden", "sueden"):
            await norden.links.request("sueden/1", LOOKUP)
            await sueden.links.request("norden/1", LOOKUP)
            norden.links.follow(verified_root(regions, FAR))
            await gone(norden, "sueden/1")
            await gone(sueden, "norden/1")


async def test_where_a_cell_is_now_is_dialled_at_once(net: Any, autojump_clock: Any) -> None:
    norden = net.nodes["norden"]
    moved = with_node(net.root, "sueden", RootNode("n1", "127.0.0.1:99", ()))
    norden.links.follow(moved)
    with trio.fail_after(60):
        async with net.running("norden", "sueden"):
            with pytest.raises(Refused):
                await norden.links.request("sueden/1", LOOKUP, 30)
            assert set(net.env.dialled) == {99}
            norden.links.follow(net.root)
            assert await norden.links.request("sueden/1", LOOKUP, 0.1) == FOUND


async def test_what_waits_for_a_link_when_another_root_document_comes_is_judged_anew(
    net: Any, autojump_clock: Any
) -> None:
    """Whoever asks has looked at the policies of the one before: it may not go out any more."""
    norden, sueden = net.nodes["norden"], net.nodes["sueden"]
    norden.links.follow(with_node(net.root, "sueden", RootNode("n1", "127.0.0.1:99", ())))
    refusals: list[Refused] = []

    async def ask() -> None:
        with pytest.raises(Refused) as refused:
            await norden.links.request("sueden/1", LOOKUP, 30)
        refusals.append(refused.value)

    with trio.fail_after(60):
        async with net.running("norden", "sueden"), trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(5)
            norden.links.follow(net.root)
            await trio.sleep(5)
            assert [one.code for one in refusals] == [Code.UNREACHABLE] and not sueden.asked
            assert await norden.links.request("sueden/1", LOOKUP, 1) == FOUND


async def test_who_is_found_elsewhere_while_the_old_place_is_dialled_is_dialled_next(
    net: Any, autojump_clock: Any
) -> None:
    """Somebody takes connections there, and says nothing."""
    norden = net.nodes["norden"]
    await net.env.listen("127.0.0.1", 99)
    norden.links.follow(with_node(net.root, "sueden", RootNode("n1", "127.0.0.1:99", ())))
    with trio.fail_after(600):
        async with net.running("norden", "sueden"):
            with pytest.raises(Refused):
                await norden.links.request("sueden/1", LOOKUP, 300)
            tries = len(net.env.dials)
            while True:
                if len(net.env.dials) > tries:
                    break
                await trio.sleep(0.1)
            norden.links.follow(net.root)
            began = trio.current_time()
            assert await norden.links.request("sueden/1", LOOKUP, 60) == FOUND
            assert trio.current_time() - began <= FAR_PACE.handshake_s + 0.5


async def test_whom_another_answered_for_is_not_held_against_who_is_there_now(net: Any, autojump_clock: Any) -> None:
    """westen answers where the document of before has sueden: nobody is told so any more."""
    norden = net.nodes["norden"]
    norden.links.follow(with_node(net.root, "sueden", RootNode("n1", f"127.0.0.1:{net.ports['westen']}", ())))
    with trio.fail_after(60):
        async with net.running("norden", "sueden", "westen"):
            with pytest.raises(PeerError, match="answers for sueden/1/n1"):
                await norden.links.request("sueden/1", LOOKUP)
            norden.links.follow(net.root)
            assert await norden.links.request("sueden/1", LOOKUP) == FOUND
