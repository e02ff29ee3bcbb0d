"""The portal: results, errors, cancellation, a hanging call, and a clean end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
import trio

from relay.journal.portal import open_portal


def in_a_thread(function: Callable[[], None]) -> None:
    threading.Thread(target=function).start()


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name == "posthouse-portal"}


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def fail() -> None:
    raise KeyError("what")


async def test_results_and_errors_are_carried_over() -> None:
    async with open_portal() as portal:
        assert await portal.run(double, 21) == 42
        with pytest.raises(KeyError, match="what"):
            await portal.run(fail)
        assert await portal.run(double, 1) == 2
    assert not threads()


async def test_many_tasks_at_once() -> None:
    results: list[int] = []

    async def one(number: int) -> None:
        results.append(await portal.run(double, number))

    async with open_portal() as portal, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(one, number)
    assert sorted(results) == [2 * number for number in range(50)]


async def test_a_started_call_ends_before_its_cancelled_caller_does() -> None:
    started, go, ended = threading.Event(), threading.Event(), threading.Event()

    async def commit() -> None:
        started.set()
        await asyncio.to_thread(go.wait, 10)
        ended.set()

    async def caller() -> None:
        await portal.run(commit)
        assert ended.is_set()

    async with open_portal() as portal:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller)
            await trio.to_thread.run_sync(started.wait, 10)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            assert not ended.is_set()
            go.set()
        assert ended.is_set()


async def test_a_cancelled_caller_starts_nothing() -> None:
    ran = []

    async def never() -> None:
        ran.append(1)

    async with open_portal() as portal:
        with trio.CancelScope() as scope:
            scope.cancel()
            await portal.run(never)
        assert scope.cancelled_caught
        await portal.run(double, 1)
    assert not ran


async def test_a_hanging_call_breaks_the_portal() -> None:
    async with open_portal(deadline_s=0.05) as portal:
        with pytest.raises(trio.BrokenResourceError, match="did not end"):
            await portal.run(asyncio.sleep, 3600)
        with pytest.raises(trio.BrokenResourceError, match="hangs"):
            await portal.run(double, 1)
    assert not threads()


async def test_what_is_handed_over_comes_back() -> None:
    async with open_portal() as portal:
        assert await portal.hand(in_a_thread, partial(int, "21")) == 21
        with pytest.raises(ValueError, match="what"):
            await portal.hand(in_a_thread, partial(int, "what"))
        with trio.CancelScope() as scope:
            scope.cancel()
            await portal.hand(pytest.fail, partial(int, "1"))
        assert scope.cancelled_caught


async def test_what_was_handed_over_ends_before_its_cancelled_caller_and_the_portal_do() -> None:
    started, go, ended = threading.Event(), threading.Event(), []

    def commit() -> None:
        started.set()
        go.wait(10)

    async def caller() -> None:
        await portal.hand(in_a_thread, commit)
        ended.append(1)

    async with trio.open_nursery() as nursery:
        async with open_portal() as portal:
            nursery.start_soon(caller)
            await trio.to_thread.run_sync(started.wait, 10)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            assert not ended
            trio.lowlevel.current_trio_token().run_sync_soon(go.set)
        assert go.is_set()
    assert ended


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_function_that_hangs_in_another_thread_breaks_the_portal(comes_back: bool) -> None:
    go, submitted = threading.Event(), []
    async with open_portal(deadline_s=0.05) as portal:
        with pytest.raises(trio.BrokenResourceError, match="did not end"):
            await portal.hand(in_a_thread if comes_back else submitted.append, partial(go.wait, 10))
        go.set()
        with pytest.raises(trio.BrokenResourceError, match="hangs"):
            await portal.run(double, 1)
        with pytest.raises(trio.BrokenResourceError, match="hangs"):
            await portal.hand(in_a_thread, threads)
    assert not threads()


async def test_what_ended_in_time_while_trio_itself_stood_still_breaks_nothing() -> None:
    """A long computation, or a machine short of processors: the disk did not hang."""

    def submit(carry: Callable[[], None]) -> None:
        carry()
        time.sleep(1.5)

    async with open_portal(deadline_s=1.0) as portal:
        assert await portal.hand(submit, lambda: 6) == 6
        assert await portal.hand(in_a_thread, lambda: 7) == 7


async def test_a_closed_portal_takes_no_call() -> None:
    async with open_portal() as portal:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await portal.run(double, 1)
    with pytest.raises(trio.ClosedResourceError):
        await portal.hand(pytest.fail, threads)


async def test_the_portal_closes_cleanly_when_its_block_is_cancelled_or_fails() -> None:
    with trio.move_on_after(0.01):
        async with open_portal():
            await trio.sleep_forever()
    assert not threads()
    with pytest.raises(KeyError):
        async with open_portal():
            raise KeyError("body")
    assert not threads()


async def test_closing_waits_for_a_running_call() -> None:
    ended = threading.Event()
    started = threading.Event()

    async def slow() -> None:
        started.set()
        await asyncio.sleep(0.02)
        ended.set()

    async with trio.open_nursery() as nursery:
        async with open_portal() as portal:
            nursery.start_soon(portal.run, slow)
            await trio.to_thread.run_sync(started.wait, 10)
        assert ended.is_set()


async def test_a_thread_that_answers_after_the_end_is_not_heard() -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async with open_portal() as portal:
        late = await portal.run(loop)
    late.call_soon_threadsafe(pytest.fail, "called")


def test_the_portal_is_gone_with_its_run() -> None:
    async def main() -> None:
        async with open_portal() as portal:
            assert await portal.run(double, 3) == 6

    for _ in range(3):
        trio.run(main)
    assert not threads()
