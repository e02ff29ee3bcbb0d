"""The simulated network does what TCP does."""

from __future__ import annotations

import pytest
import trio

from tests.simulation.network import GIVE_UP_S, Network, Weather
from tests.simulation.world import World, simulate


async def pair(world, **weather):
    net = Network(world, Weather(**weather))
    a, b = net.add("a", "norden"), net.add("b", "norden", is_node=True)
    listener = await net.listen(b, 80)
    near = await net.dial(a, "b", 80)
    return net, near, await listener.accept()


def run(scenario, seed=1):
    """Run a scenario in a world of its own; its return value."""
    found = []

    async def main(world: World) -> None:
        with trio.fail_after(1000):
            found.append(await scenario(world))

    world = simulate(seed, main)
    return found[0], world


def test_bytes_arrive_in_order_whatever_is_lost_and_split() -> None:
    async def scenario(world):
        _, near, far = await pair(world, loss=0.2, split=0.5, jitter=3.0)
        sent = b"".join(number.to_bytes(4, "big") for number in range(2000))

        async def send():
            for start in range(0, len(sent), 100):
                await near.send_all(sent[start : start + 100])
            await near.send_eof()

        got = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while part := await far.receive_some(777):
                got += part
        return got == sent

    same, world = run(scenario)
    assert same
    assert world.counts["segment lost"] > 10


def test_a_full_window_makes_the_sender_wait() -> None:
    async def scenario(world):
        _, near, far = await pair(world, window=1000)
        with trio.move_on_after(100) as scope:
            await near.send_all(bytes(1500))
        got = b""
        with trio.move_on_after(1):
            while True:
                got += await far.receive_some()
        return scope.cancelled_caught, len(got)

    assert run(scenario)[0] == (True, 1000)


def test_what_meets_a_block_arrives_once_it_is_gone_and_in_order() -> None:
    async def scenario(world):
        net, near, far = await pair(world)
        await near.send_all(b"1")  # under way when the block begins
        net.block("a", "b")
        await near.send_all(b"2")
        await far.send_all(b"back")  # the other direction is free
        back = await near.receive_some()
        await trio.sleep(10)
        net.unblock("a", "b")
        await near.send_all(b"3")
        got = b""
        while len(got) < 3:
            got += await far.receive_some()
        return back, got

    assert run(scenario)[0] == (b"back", b"123")


def test_the_sender_is_told_after_a_while_and_the_other_end_never() -> None:
    async def scenario(world):
        net, near, far = await pair(world)
        net.block("a", "b")
        await near.send_all(b"x")
        began = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
        took = trio.current_time() - began
        with trio.move_on_after(500) as scope:
            await far.receive_some()
        return took, scope.cancelled_caught

    took, deaf = run(scenario)[0]
    assert took == pytest.approx(GIVE_UP_S, abs=0.01)
    assert deaf


def test_a_half_open_connection_is_silent_until_the_machine_answers_with_a_reset() -> None:
    async def scenario(world):
        net, near, _ = await pair(world)
        net.power_off(net.hosts["b"])
        await near.send_all(b"x")
        with trio.move_on_after(30) as scope:
            await near.receive_some()
        net.power_on(net.hosts["b"])
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
        return scope.cancelled_caught

    assert run(scenario)[0]


def test_a_dead_process_resets_and_nobody_listens_there() -> None:
    async def scenario(world):
        net, near, _ = await pair(world)
        net.kill_process(net.hosts["b"])
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
        with pytest.raises(ConnectionRefusedError):
            await net.dial(net.hosts["a"], "b", 80)
        net.power_off(net.hosts["b"])
        with pytest.raises(TimeoutError):
            await net.dial(net.hosts["a"], "b", 80)

    run(scenario)


def test_closing_with_unread_bytes_resets_and_closing_without_ends() -> None:
    async def scenario(world):
        _, near, far = await pair(world)
        await near.send_all(b"hello")
        await near.send_eof()
        assert await far.receive_some() == b"hello"
        assert await far.receive_some() == b""
        await far.send_all(b"and back")
        await trio.sleep(1)
        await near.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await trio.sleep(1)
            await far.send_all(b"more")

    run(scenario)


def test_the_same_seed_is_the_same_world() -> None:
    async def scenario(world):
        _, near, far = await pair(world, loss=0.3, split=0.5)

        async def chat(stream):
            for size in range(1, 50):
                await stream.send_all(bytes(size))
                await stream.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat, near)
            nursery.start_soon(chat, far)

    first, again, other = (run(scenario, seed)[1].trace.digest() for seed in (1, 1, 2))
    assert first == again != other
