"""Links and time: half-open connections, slow handlers, backoff. In memory, under a mock clock, with real TLS."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import structlog.testing
import trio

from cluster.core.linkwire import LookUp
from cluster.links.links import Links
from relay.core.wire import Code
from relay.errors import Refused, RegionHalted
from relay.limits import LINK_BACKOFF_MAX_S, LINK_BACKOFF_S, LINK_DEADLINE_S, LINK_HANDSHAKE_S, LINK_SILENCE_S

LOOKUP = LookUp(bytes(32), 0)


async def test_an_idle_link_is_kept(net: Any, autojump_clock: Any) -> None:
    links = net.nodes["norden"].links
    async with net.running("norden", "sueden"):
        await links.request("sueden/1", LOOKUP)
        await trio.sleep(3600)
        assert links.connected("sueden/1") and len(net.env.dials) == 1
        await links.request("sueden/1", LOOKUP)


async def test_a_half_open_link_is_noticed_on_both_sides_and_replaced(net: Any, autojump_clock: Any) -> None:
    links = net.nodes["norden"].links
    with structlog.testing.capture_logs() as logs:
        async with net.running("norden", "sueden"):
            await links.request("sueden/1", LOOKUP)
            net.env.swallow()
            await trio.sleep(15)
            assert len(net.env.dials) == 2
            await links.request("sueden/1", LOOKUP)
    reasons = [entry["reason"] for entry in logs if entry["event"] in ("link_down", "link_closed")]
    assert reasons[:2] == [f"not a byte for {LINK_SILENCE_S:.0f} s"] * 2


async def test_a_request_into_a_half_open_link_ends_by_its_own_deadline(net: Any, autojump_clock: Any) -> None:
    links = net.nodes["norden"].links
    async with net.running("norden", "sueden"):
        await links.request("sueden/1", LOOKUP)
        net.env.swallow()
        began = trio.current_time()
        with pytest.raises(Refused, match=r"no answer in 2\.5 s") as caught:
            await links.request("sueden/1", LOOKUP, 2.5)
        assert caught.value.code == Code.UNREACHABLE
        assert trio.current_time() - began == pytest.approx(2.5)


async def test_a_slow_handler_is_given_up_and_does_not_stop_the_others(net: Any, autojump_clock: Any) -> None:
    links, sueden = net.nodes["norden"].links, net.nodes["sueden"]
    sueden.gate = trio.Event()
    async with net.running("norden", "sueden"):
        async with trio.open_nursery() as nursery:

            async def slow() -> None:
                began = trio.current_time()
                with pytest.raises(Refused) as caught:
                    await links.request("sueden/1", LOOKUP, LINK_DEADLINE_S * 2)
                assert caught.value.code == Code.OVERLOADED
                assert trio.current_time() - began == pytest.approx(LINK_DEADLINE_S, abs=1)

            nursery.start_soon(slow)
            await trio.sleep(1)
            sueden.gate, held = None, sueden.gate
            await links.request("sueden/1", LOOKUP)
        assert links.connected("sueden/1") and len(net.env.dials) == 1
        assert held is not None and not held.is_set()


async def test_failed_dials_back_off_with_jitter_and_end_soon_after_the_peer_is_there(
    net: Any, autojump_clock: Any
) -> None:
    links, env = net.nodes["norden"].links, net.env
    gone = env.listeners.pop(net.ports["sueden"])
    async with net.running("norden", "sueden"):
        with structlog.testing.capture_logs() as logs, pytest.raises(Refused):
            await links.request("sueden/1", LOOKUP, 60)
        pauses = [b - a for a, b in pairwise(env.dials)]
        assert LINK_BACKOFF_S <= pauses[0] <= 2 * LINK_BACKOFF_S
        assert all(LINK_BACKOFF_MAX_S / 2 <= pause <= LINK_BACKOFF_MAX_S for pause in pauses[-5:])
        assert len(set(pauses[-5:])) == 5
        assert len(pauses) < 40
        assert [entry["event"] for entry in logs] == ["link_unreachable"]  # once, however long it lasts
        env.listeners[net.ports["sueden"]] = gone
        began = trio.current_time()
        await links.request("sueden/1", LOOKUP)
        assert trio.current_time() - began <= LINK_BACKOFF_MAX_S


@pytest.mark.parametrize("why", ["halted", "lapsed"])
async def test_what_waits_for_a_link_does_not_go_to_a_region_that_is_halted_meanwhile(
    net: Any, autojump_clock: Any, why: str
) -> None:
    """Found by the simulator: a request that was right when it was made, and a region that was out of reach."""
    refused = list[str]()
    norden, env = net.node("norden"), net.env

    def check(cell: str) -> None:
        if cell in refused:
            raise RegionHalted(Code.UNREACHABLE, "halted", cell)

    links = norden.links = Links(env, net.root, norden.peer, norden.credentials, norden.metrics, check)
    net.nodes["norden"] = norden
    gone = env.listeners.pop(net.ports["sueden"])
    async with net.running("norden", "sueden"), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Refused, match=r"halted|statement of region sueden has expired"):
                await links.request("sueden/1", LOOKUP)

        nursery.start_soon(ask)
        await trio.sleep(1)
        if why == "halted":
            refused.append("sueden/1")
        else:
            links.lapsed = lambda: ("sueden",)
        env.listeners[net.ports["sueden"]] = gone
    assert not net.nodes["sueden"].asked


async def test_who_says_nothing_holds_a_place_only_for_the_handshake(net: Any, autojump_clock: Any) -> None:
    async with net.running("sueden"):
        silent = await net.env.dial("127.0.0.1", net.ports["sueden"])
        began = trio.current_time()
        while await silent.receive_some():
            pass  # who is there says so at once
        assert trio.current_time() - began == pytest.approx(LINK_HANDSHAKE_S)


async def test_cancelling_a_node_in_the_middle_of_everything_leaves_nothing_behind(
    net: Any, autojump_clock: Any
) -> None:
    links, sueden = net.nodes["norden"].links, net.nodes["sueden"]
    sueden.gate = trio.Event()
    ended: list[str] = []

    async def ask() -> None:
        with pytest.raises(Refused) as caught:
            await links.request("sueden/1", LOOKUP)
        ended.append(caught.value.text)

    async with trio.open_nursery() as nursery:
        async with net.running("norden", "sueden"):
            for _ in range(100):
                nursery.start_soon(ask)
            await trio.sleep(1)
        assert not links.connected("sueden/1")
    assert len(ended) == 100 and sueden.running == 0
    assert net.nodes["norden"].metrics.links_up.labels("sueden/1")._value.get() == 0
