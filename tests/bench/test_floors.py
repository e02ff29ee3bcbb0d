"""What the bare sends cost, by the very process that a run starts; and how many frames a send of the run had."""

from __future__ import annotations

from pathlib import Path

from bench.floors import Order, cpu_us, measure_floors, ratios
from bench.report import describe, summarize
from tests.bench.standin import StandIn
from tests.bench.test_run import run


def test_joined_frames_cost_less_each() -> None:
    alone = cpu_us(Order(sockets=20, size=300, rate=2000.0, frames_a_send=1.0))
    joined = cpu_us(Order(sockets=20, size=300, rate=2000.0, frames_a_send=20.0))
    assert 0 < joined < alone / 2


def test_more_than_a_socket_takes_is_waited_for() -> None:
    assert cpu_us(Order(sockets=2, size=1 << 18, rate=10.0, frames_a_send=8.0)) > 0


async def test_a_run_has_its_floors(tmp_path: Path) -> None:
    raw = await run(StandIn(), tmp_path)
    assert all(0 < one.reads <= one.deliveries for one in raw.received)
    floors = await measure_floors(raw)
    assert floors["frame_bytes"] > 256 and floors["frames_a_send"] >= 1 and floors["bare_us"] > 0
    found = ratios(floors, 2 * floors["bare_us"])
    assert found["to_bare"] == 2.0
    report = summarize(raw, None, tmp_path) | {"floors": floors | found}
    assert any("CPU of all nodes a delivery is 2.0 and" in line for line in describe(report))
