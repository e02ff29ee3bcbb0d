"""Links between nodes that behave: requests, faults, bounds, reconnect. On loopback or in memory, with real TLS."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from cluster.core.linkwire import SPEAKS_CHANNELS, Done, EphemeralTo, HandItem, HandOver, LookUp, ReadThere, Records
from cluster.links import Links
from relay.core.farposts import Question, Shown
from relay.core.wire import Code
from relay.errors import BadSignature, DiskFailed, OperatorError, Overloaded, Refused
from relay.limits import LINK_REQUESTS

LOOKUP = LookUp(bytes(32), 0)


async def test_a_request_finds_its_cell_and_the_peer_is_known(fed: Any) -> None:
    with trio.fail_after(10):
        async with fed.running("norden", "sueden"):
            norden, sueden = fed.nodes["norden"], fed.nodes["sueden"]
            assert not norden.links.connected("sueden/1")
            assert await norden.links.request("sueden/1", LOOKUP) == Records(Code.STORED, (bytes(32),))
            assert await norden.links.request("sueden/1", EphemeralTo(*[bytes(32)] * 3, b"hi")) == Done()
            assert [peer for peer, _ in sueden.asked] == [norden.peer] * 2
            assert norden.links.connected("sueden/1") and not sueden.links.connected("norden/1")
            assert norden.metrics.links_up.labels("sueden/1")._value.get() == 1
            assert norden.metrics.links_up.labels("westen/1")._value.get() == 0


async def test_many_requests_in_flight_and_no_more_than_the_bound(net: Any, autojump_clock: Any) -> None:
    fed = net
    with trio.fail_after(20):
        async with fed.running("norden", "sueden"), trio.open_nursery() as nursery:
            sueden = fed.nodes["sueden"]
            sueden.gate = trio.Event()
            answers: list[object] = []

            async def ask(number: int) -> None:
                user = number.to_bytes(32, "big")
                answer = await fed.nodes["norden"].links.request("sueden/1", LookUp(user, 0))
                answers.append((user, answer))

            for number in range(300):
                nursery.start_soon(ask, number)
            await trio.sleep(1)
            assert sueden.most == LINK_REQUESTS - 1 and not answers
            sueden.gate.set()
    assert len(answers) == 300
    assert all(answer == Records(Code.STORED, (user,)) for user, answer in answers)


async def test_large_requests_are_bounded_in_bytes_and_all_arrive(net: Any, autojump_clock: Any) -> None:
    fed = net
    item = HandItem(1, bytes(1024 * 1024), b"")
    message = HandOver(bytes(16), 0, 1, (item,) * 3)
    with trio.fail_after(20):
        async with fed.running("norden", "sueden"), trio.open_nursery() as nursery:
            sueden = fed.nodes["sueden"]
            sueden.gate = trio.Event()
            for _ in range(5):
                nursery.start_soon(fed.nodes["norden"].links.request, "sueden/1", message)
            await trio.sleep(1)
            assert sueden.most == 2
            sueden.gate.set()
    assert len(sueden.asked) == 5


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused(Code.UNKNOWN_USER, "nobody"), Code.UNKNOWN_USER),
        (Overloaded("full", 700), Code.OVERLOADED),
        (BadSignature("bad"), Code.BAD_RECORD),
        (KeyError("a mistake of ours"), Code.OVERLOADED),
    ],
)
async def test_a_handlers_error_is_the_answer_and_the_link_goes_on(fed: Any, error: Exception, code: Code) -> None:
    with trio.fail_after(10):
        async with fed.running("norden", "sueden"):
            fed.nodes["sueden"].error = error
            for _ in range(2):
                with pytest.raises(Refused) as caught:
                    await fed.nodes["norden"].links.request("sueden/1", LOOKUP)
                assert caught.value.code == code
            assert caught.value.retry_after_ms == {Code.OVERLOADED: 700 if "full" in str(error) else 1000}.get(code, 0)
            fed.nodes["sueden"].error = None
            assert fed.nodes["norden"].links.connected("sueden/1")
            await fed.nodes["norden"].links.request("sueden/1", LOOKUP)


async def test_a_failed_disk_ends_the_node_and_is_not_answered(fed: Any) -> None:
    fed.nodes["sueden"].error = DiskFailed("fsync: EIO")
    with trio.fail_after(10), pytest.RaisesGroup(DiskFailed, flatten_subgroups=True):
        async with fed.running("norden", "sueden"):
            with pytest.raises(Refused, match="the link ended before the answer"):
                await fed.nodes["norden"].links.request("sueden/1", LOOKUP)
            await trio.sleep_forever()


async def test_an_unknown_cell_and_links_that_do_not_run(fed: Any) -> None:
    links = fed.nodes["norden"].links
    with pytest.raises(Refused, match="not running") as caught:
        await links.request("sueden/1", LOOKUP)
    assert caught.value.code == Code.UNREACHABLE
    with trio.fail_after(10):
        async with fed.running("norden"):
            for cell in ("osten/1", "sueden/2", ""):
                with pytest.raises(Refused) as caught:
                    await links.request(cell, LOOKUP)
                assert caught.value.code == Code.UNKNOWN_REGION and not links.connected(cell)


async def test_a_region_whose_statement_ran_out_is_not_heard_any_more(net: Any, autojump_clock: Any) -> None:
    """Also on a link that was opened while it held; and what it says anew counts at once."""
    fed, lapsed = net, set[str]()
    norden, sueden = fed.nodes["norden"], fed.nodes["sueden"]
    norden.links.lapsed = lambda: lapsed
    with trio.fail_after(20):
        async with fed.running("norden", "sueden"):
            await norden.links.request("sueden/1", LOOKUP)
            await sueden.links.request("norden/1", LOOKUP)
            lapsed.add("sueden")
            for asker, cell in ((norden, "sueden/1"), (sueden, "norden/1")):
                with pytest.raises(Refused, match="statement of region sueden has expired") as caught:
                    await asker.links.request(cell, LOOKUP)
                assert caught.value.code == Code.UNREACHABLE
            assert len(norden.asked) == len(sueden.asked) == 1
            lapsed.clear()
            await norden.links.request("sueden/1", LOOKUP)
            await sueden.links.request("norden/1", LOOKUP)


async def test_a_stopped_peer_is_found_again(net: Any, autojump_clock: Any) -> None:
    fed = net
    links = fed.nodes["norden"].links
    with trio.fail_after(20):
        async with fed.running("norden"):
            async with fed.running("sueden"):
                await links.request("sueden/1", LOOKUP)
            await trio.sleep(0.01)
            assert not links.connected("sueden/1")
            with pytest.raises(Refused) as caught:
                await links.request("sueden/1", LOOKUP, 0.2)
            assert caught.value.code == Code.UNREACHABLE
            await fed.listen_again("sueden")
            async with fed.running("sueden"):
                assert await links.request("sueden/1", LOOKUP) == Records(Code.STORED, (bytes(32),))


async def test_a_cancelled_request_leaves_the_link_in_order(fed: Any) -> None:
    links, sueden = fed.nodes["norden"].links, fed.nodes["sueden"]
    with trio.fail_after(10):
        async with fed.running("norden", "sueden"):
            await links.request("sueden/1", LOOKUP)
            sueden.gate = trio.Event()
            with trio.move_on_after(0.05) as scope:
                await links.request("sueden/1", LOOKUP)
            assert scope.cancelled_caught
            sueden.gate.set()
            user = b"\x01" * 32
            assert await links.request("sueden/1", LookUp(user, 0)) == Records(Code.STORED, (user,))
            assert links.connected("sueden/1")


async def test_a_certificate_of_another_node_is_the_operators_mistake(fed: Any) -> None:
    with pytest.raises(OperatorError, match="certificate is of norden/1/n1, the config of sueden/1/n1"):
        Links(fed.env, fed.root, fed.nodes["sueden"].peer, fed.nodes["norden"].credentials)


READ = ReadThere(Question(bytes(32), Shown(bytes(32), bytes(32), bytes(64)), 0))


async def test_what_an_old_peer_does_not_know_is_not_sent_to_it(net: Any, autojump_clock: Any) -> None:
    """It would end the link, and what mail has in flight on it."""
    fed = net
    with trio.fail_after(20):
        async with fed.running("norden", "sueden"):
            norden, sueden = fed.nodes["norden"], fed.nodes["sueden"]
            known: list[object] = []

            async def old(peer: Any, message: Any) -> object:
                known.append(message)
                return Records(Code.UNKNOWN_USER, ()) if message == LookUp(SPEAKS_CHANNELS, 0) else Done()

            sueden.answer = old
            for _ in range(3):
                with pytest.raises(Refused) as refused:
                    await norden.links.request("sueden/1", READ)
                assert refused.value.code == Code.UNREACHABLE and "release" in refused.value.text
            assert known == [LookUp(SPEAKS_CHANNELS, 0)] and norden.links.connected("sueden/1")


async def test_who_knows_it_is_asked_once_a_link(net: Any, autojump_clock: Any) -> None:
    fed = net
    with trio.fail_after(20):
        async with fed.running("norden", "sueden"):
            norden, sueden = fed.nodes["norden"], fed.nodes["sueden"]
            for _ in range(2):
                assert await norden.links.request("sueden/1", READ) == Done()
            assert [message for _, message in sueden.asked] == [LookUp(SPEAKS_CHANNELS, 0), READ, READ]
            sueden.asked.clear()
            sueden.error = Overloaded("starting")
            with pytest.raises(Refused) as refused:
                await norden.links.request("sueden/1", READ)
            assert refused.value.code == Code.OVERLOADED
